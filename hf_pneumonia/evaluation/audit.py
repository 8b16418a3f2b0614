"""Audit of a data set: duplicates, leakage and shortcuts, as audit.html, audit.json and manifest.csv.

The audit only counts. cohort.py decides which images are used.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.appearance import GRAYS, STATISTICS
from hf_pneumonia.data.cohort import UNREADABLE, Cohort
from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.data.labels import LABELS, SPLITS, coarse_patient, is_global_id
from hf_pneumonia.data.manifest import SEEN_SPLITS, write_manifest
from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS, TEXT_SIDE
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.appearance import audit_appearance, audit_lines, score_appearance
from hf_pneumonia.evaluation.audit_plots import KINDS, Pair, as_data_uri, plot_appearance, plot_images
from hf_pneumonia.evaluation.metrics import metrics_line
from hf_pneumonia.modeling.augment import Strength

PAGE = "audit.html"

_TEMPLATE = Path(__file__).with_name("audit.html")
_SHOWN = 6  # pairs per plot
_PAIRS = {
    "different_labels": "Duplicates with different labels",
    "across_splits": "Duplicates in two splits of the sources",
    "least_alike": "Least similar pairs above the limit (duplicates)",
    "most_alike": "Most similar pairs below the limit (not duplicates)",
}
_CROSSING = {
    "patients_fine": "patients, by full id",
    "patients_coarse": "patients, by coarse id",
    "duplicate_groups": "groups of duplicates",
}


def write_audit(cohort: Cohort, folder: Path, augmentation: Mapping[str, Strength] | None = None) -> dict:
    """Audit the images and write audit.html, audit.json and manifest.csv.

    Args:
        cohort: images with their splits.
        folder: created if missing; files of an earlier audit are replaced.
        augmentation: arguments of `Augment`, for its plot; None plots copies and appearance alone.

    Returns:
        The findings, as plain values: `films` (number of images), `sources` and `removed` (counts);
        `unreadable`; `duplicates` (groups of copies, groups of equal bytes, pairs found by pixels);
        `conflicting_labels`; `leakage` in the splits `as_given` by the sources and `as_used`: numbers of
        `patients_fine` (full id), `patients_coarse` (`coarse_patient`) and `duplicate_groups` in more than
        one split; `overlays` (images with burned-in text or colour, by class), `searched_for_text` and
        `blank` (images); `balance` (images by split, source and class); `label_told_by`, the AUROC of each
        shortcut alone; `appearance` (`audit_appearance`).
    """
    scores = score_appearance(cohort)
    findings = _audit_images(cohort, scores)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(findings, indent=2) + "\n")
    write_manifest(cohort, folder / "manifest.csv")
    figures = plot_images(cohort, _pairs_to_plot(cohort), augmentation)
    if findings["appearance"]["statistics"]:
        figures["appearance"] = plot_appearance(cohort, findings["appearance"], scores)
    plots = {name: as_data_uri(figure) for name, figure in figures.items()}
    (folder / PAGE).write_text(_page(cohort, findings, plots), encoding="utf-8")
    return findings


def _audit_images(cohort: Cohort, scores: np.ndarray) -> dict:
    correlation = cohort.cache.similar_pairs()[1]
    groups = cohort.copy_groups()
    readable, facts = cohort.reason != UNREADABLE, cohort.cache.facts
    overlays = {"text": facts["text_rows"] >= TEXT_ROWS, "colour": facts["colour_share"] >= COLOUR_SHARE}
    counts = cohort.counts()
    hashes = facts["sha256"]
    return {
        "films": len(cohort.file),
        "sources": counts["sources"],
        "removed": counts["removed"],
        "unreadable": counts["unreadable"],
        "duplicates": {
            "groups": len(groups),
            "films": sum(map(len, groups)),
            "groups_of_equal_bytes": int(np.sum(np.unique(hashes[hashes != b""], return_counts=True)[1] > 1)),
            "pairs_by_pixels": int(np.sum(correlation >= COPY)),
            "groups_across_sources": sum(len(set(cohort.source[rows])) > 1 for rows in groups),
        },
        "conflicting_labels": [
            cohort.file[rows].tolist() for rows in groups if len(set(cohort.label[rows])) > 1
        ],
        "leakage": {
            "as_given": _crossing(cohort, cohort.source_split),
            "as_used": _crossing(cohort, cohort.split),
        },
        "overlays": {name: _by_class(cohort, overlay & readable) for name, overlay in overlays.items()},
        "searched_for_text": int(np.sum(np.minimum(facts["width"], facts["height"]) >= TEXT_SIDE)),
        "blank": int(np.sum(readable & facts["blank"])),
        "balance": {
            split: {
                source: _by_class(cohort, (cohort.split == split) & (cohort.source == source))
                for source in np.unique(cohort.source)
            }
            for split in [*SPLITS, *sorted(set(cohort.split) - {*SPLITS, ""})]
        },
        "label_told_by": _shortcut_aurocs(cohort),
        "appearance": audit_appearance(cohort, scores),
    }


def _by_class(cohort: Cohort, chosen: np.ndarray) -> dict[str, int]:
    return {label: int(np.sum(chosen & (cohort.label == index))) for index, label in enumerate(LABELS)}


def _crossing(cohort: Cohort, split: np.ndarray) -> dict[str, int]:
    """Count patients and groups of copies that are in more than one split, (n,) as given or as used."""
    coarse = [coarse_patient(patient) for patient in cohort.patient_id]
    return {
        "patients_fine": len(crossing_ids(cohort.patient_id, split)),
        "patients_coarse": len(crossing_ids(coarse, split)),
        "duplicate_groups": len(crossing_ids(cohort.duplicate_group, split)),
    }


def crossing_ids(ids: Sequence, split: np.ndarray) -> set:
    """Return the ids that are in more than one of SPLITS."""
    train, validation, test = ({ids[row] for row in np.flatnonzero(split == name)} for name in SPLITS)
    return train & validation | train & test | validation & test


def check_leakage(cohort: Cohort, seen: list[dict[str, str]], allowed: bool) -> dict[str, int]:
    """Refuse to train with leakage between splits, or from weights that have seen the test images.

    cohort.py removes leakage between splits; this counts it again as a safeguard.

    Args:
        cohort: images with their splits.
        seen: rows of `read_seen`, the images on which the initial weights were trained or chosen.
        allowed: return the counts instead of raising.

    Returns:
        Numbers of `patients` and `duplicate_groups` in two splits, and of images seen before (`films_seen`):
        test images on which the weights were trained or chosen, and validation images on which they were
        trained.

    Raises:
        UsageError: a count is not 0, and not allowed.
    """
    crossed = _crossing(cohort, cohort.split)
    trained_on = [row for row in seen if row["split"] == "train"]
    chosen_by = [row for row in seen if row["split"] in SEEN_SPLITS]
    images_seen = was_seen(cohort, cohort.rows("test"), chosen_by).sum()
    images_seen += was_seen(cohort, cohort.rows("validation"), trained_on).sum()
    leaks = {
        "patients": crossed["patients_fine"],
        "duplicate_groups": crossed["duplicate_groups"],
        "films_seen": int(images_seen),
    }
    if any(leaks.values()) and not allowed:
        raise UsageError(
            "leakage",
            f"--allow_leakage: expected no leakage, got {leaks['patients']} patients and "
            f"{leaks['duplicate_groups']} groups of duplicates in two splits, and {leaks['films_seen']} "
            "validation and test images that the initial weights were trained on. Start from other weights, "
            "keep the split of their training, or pass --allow_leakage true (recorded in the report and in "
            "config.json)",
        )
    return leaks


def was_seen(cohort: Cohort, rows: np.ndarray, seen: list[dict[str, str]]) -> np.ndarray:
    """Return whether the images of (k,) rows, or their patients, are in the rows of `read_seen`: (k,) bool.

    An image is recognised by its bytes, and a patient by an id that is the same in every copy of the data set
    (`is_global_id`). A re-encoded image of a patient without such an id is not recognised.
    """
    hashes = {row["content_hash"].encode() for row in seen}
    patients = {row["patient_id"] for row in seen if is_global_id(row["patient_id"])}
    sha256 = cohort.cache.facts["sha256"]
    return np.array([sha256[row] in hashes or cohort.patient[row] in patients for row in rows], dtype=bool)


def _shortcut_aurocs(cohort: Cohort) -> dict[str, float]:
    """AUROC of each shortcut alone: over all images in use, or in a single source if it is higher there."""
    rows = np.flatnonzero(np.isin(cohort.split, SPLITS))
    label, source, facts = cohort.label[rows], cohort.source[rows], cohort.cache.facts[rows]
    # Scored by the share of pneumonia in its source: the best prediction from the source alone.
    share = {name: label[source == name].mean() for name in set(source)}
    aurocs = {"source": auroc_alone(np.array([share[name] for name in source]), label)}
    shortcuts = {
        "width of the file": facts["width"],
        "height of the file": facts["height"],
        "width / height": facts["width"] / np.maximum(facts["height"], 1),
        "burned-in text": facts["text_rows"] >= TEXT_ROWS,
        "colour": facts["colour_share"] >= COLOUR_SHARE,
    }
    # With fewer than ten images of a class, chance predicts the label.
    large = [source == name for name in share if np.bincount(label[source == name], minlength=2).min() >= 10]
    for name, values in shortcuts.items():
        areas = [auroc_alone(values[some], label[some]) for some in (np.full(len(label), True), *large)]
        aurocs[name] = max((area for area in areas if area is not None), default=None)
    return {name: round(area, 4) for name, area in aurocs.items() if area is not None}


def auroc_alone(values: np.ndarray, label: np.ndarray) -> float | None:
    """Compute the AUROC of (k,) values for (k,) labels in either direction, 0.5 (chance) to 1.

    None if a class has no images.
    """
    if len(np.unique(label)) < 2:
        return None
    area = float(roc_auc_score(label, values))
    return max(area, 1 - area)


def summary(findings: dict) -> list[str]:
    """Format the findings as a few lines of text."""
    removed, copies, leaks = findings["removed"], findings["duplicates"], findings["leakage"]
    lines = [
        f"{findings['films']} images, sources: {', '.join(findings['sources'])}; excluded: "
        + ", ".join(f"{count} ({reason})" for reason, count in removed.items()),
        f"{copies['groups']} groups of duplicates ({copies['films']} images), "
        f"{copies['groups_of_equal_bytes']} of them with equal bytes; "
        f"{len(findings['conflicting_labels'])} groups with different labels",
    ]
    for name, leak in leaks.items():
        lines.append(
            f"in two splits, {name.replace('_', ' ')}: {leak['patients_fine']} patients "
            f"({leak['patients_coarse']} by coarse id), "
            f"{leak['duplicate_groups']} groups of duplicates"
        )
    for name, classes in findings["overlays"].items():
        if any(classes.values()):
            counts = ", ".join(f"{count} {label}" for label, count in classes.items())
            among = f" of {findings['searched_for_text']} that are large enough" if name == "text" else ""
            lines.append(f"images with burned-in {name}: {counts}{among}")
    if findings["blank"]:
        lines.append(f"blank images (one gray value): {findings['blank']}")
    return [*lines, *audit_lines(findings["appearance"])]


def count_images(cohort: Cohort) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of counts: by split, by split and source if there are several
    sources, and in total."""
    kind = np.where(cohort.split == "covid", len(KINDS) - 1, cohort.label)
    kinds = np.unique(kind[cohort.split != ""]).tolist()
    sources = np.unique(cohort.source).tolist()

    def row(name: str, chosen: np.ndarray) -> list[str]:
        counts = np.bincount(kind[chosen], minlength=len(KINDS))
        patients = len(np.unique(cohort.patient[chosen].astype(str)))
        ratio = f"1 : {counts[1] / counts[0]:.3g}" if counts[0] and counts[1] else "–"
        numbers = [*counts[kinds], chosen.sum(), patients]
        return [name, *(f"{number:,}" for number in numbers), ratio]

    rows = []
    for split in (name for name in cohort.counts()["splits"] if name in cohort.split):
        rows.append(row(split, cohort.split == split))
        for source in sources if len(sources) > 1 else ():
            chosen = (cohort.split == split) & (cohort.source == source)
            if chosen.any():
                rows.append(row(f"{split}, {source}", chosen))
    rows.append(row("all", cohort.split != ""))
    return ["split", *(KINDS[index] for index in kinds), "images", "patients", "ratio"], rows


def _pairs_to_plot(cohort: Cohort) -> dict[str, list[Pair]]:
    """Pairs of rows for each of _PAIRS, with their similarity in words."""
    rows, correlation = cohort.cache.similar_pairs()
    similarity = {
        tuple(pair): f"correlation {value:.3f}"
        for pair, value in zip(rows.tolist(), correlation, strict=True)
    }
    conflicting, across = [], []
    crossed = crossing_ids(cohort.duplicate_group, cohort.source_split)
    for first, *others in cohort.copy_groups():
        if other := [row for row in others if cohort.label[row] != cohort.label[first]]:
            conflicting.append((int(first), int(other[0])))
        if cohort.duplicate_group[first] in crossed:
            elsewhere = next(row for row in others if cohort.source_split[row] != cohort.source_split[first])
            across.append((int(first), int(elsewhere)))
    order = np.argsort(correlation, kind="stable")
    copies = [tuple(rows[index].tolist()) for index in order if correlation[index] >= COPY]
    not_copies = [tuple(rows[index].tolist()) for index in order[::-1] if correlation[index] < COPY]

    kinds = zip(_PAIRS, (conflicting, across, copies, not_copies), strict=True)
    return {
        name: [(*pair, similarity.get(pair, "equal bytes")) for pair in pairs[:_SHOWN]]
        for name, pairs in kinds
    }


def _medians(row: dict) -> list[float]:
    scale = 255 if row["statistic"] in GRAYS else 1
    return [round(scale * median, 2) for median in row["median"].values()]


def _page(cohort: Cohort, findings: dict, plots: Mapping[str, str]) -> str:
    leaks, appearance = findings["leakage"], findings["appearance"]
    # Names of files may hold markup: autoescape.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        findings=findings,
        summary=summary(findings),
        counts=count_images(cohort),
        notes=cohort.notes,
        unreadable=[f"{image['file']}: {image['reason']}" for image in findings["unreadable"]],
        crossing=[(text, leaks["as_given"][key], leaks["as_used"][key]) for key, text in _CROSSING.items()],
        limit=COPY,
        pairs=_PAIRS,
        conflicting=[", ".join(names) for names in findings["conflicting_labels"]],
        statistics=len(STATISTICS),
        appearance_lines=audit_lines(appearance),
        best=[
            (row["statistic"], f"{row['auroc']:.3f}", *_medians(row), row["words"])
            for row in appearance["statistics"]
        ],
        against_train=[
            f"{label}: {metrics_line({'auroc': area}, ('auroc',))}"
            for label, area in (appearance["test_against_train"] or {}).items()
        ],
        shortcuts=[(name, f"{value:.3f}") for name, value in findings["label_told_by"].items()],
        overlays=[(name, *classes.values()) for name, classes in findings["overlays"].items()],
        plots=plots,
    )
