"""Audit of a data set: duplicates, leakage and shortcuts, as audit.html, audit.json and manifest.csv.

It finds and counts only. The rules of cohort.py decided before what becomes of an image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.appearance import STATISTICS
from hf_pneumonia.data.cohort import UNREADABLE, Cohort
from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.data.labels import LABELS, SERIES, SPLITS, coarse_patient, is_global_id
from hf_pneumonia.data.manifest import TEACHING, write_manifest
from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS, TEXT_SIDE
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.appearance import audit_appearance, audit_lines, score_appearance
from hf_pneumonia.evaluation.audit_plots import KINDS, Pair, as_data_uri, plot_appearance, plot_images
from hf_pneumonia.evaluation.metrics import figures_line
from hf_pneumonia.modeling.augment import Strength

PAGE = "audit.html"

_TEMPLATE = Path(__file__).with_name("audit.html")
_SHOWN = 6  # pairs in a picture
_PAIRS = {
    "different_labels": "Copies with different labels",
    "across_splits": "Copies in two splits, as the sources have them",
    "least_alike": "The least alike that were taken for copies",
    "most_alike": "The most alike that were not taken for copies",
}
_CROSSING = {
    "patients_fine": "patients, by their id",
    "patients_coarse": "patients, by the coarse reading of their id",
    "duplicate_groups": "groups of copies",
}


def write_audit(cohort: Cohort, folder: Path, augmentation: Mapping[str, Strength] | None = None) -> dict:
    """Audit the images, and write what was found.

    Args:
        cohort: split.
        folder: made where missing; files of an earlier audit are replaced.
        augmentation: arguments of `Augment`, to be drawn; None draws the copies and the appearance alone.

    Returns:
        The findings, as plain values: `images`, `sources` and `removed` (counts); `duplicates` (groups of
        copies, those of equal bytes among them, and pairs found by pixels); `conflicting_labels`; `leakage`,
        as the sources have their splits and as they are used: numbers of `patients_fine` (the id as it is),
        `patients_coarse` (`coarse_patient`) and `duplicate_groups` in more than one; `overlays` (images with
        burned-in text or colour, by class), `searched_for_text` and `blank` (images); `balance` (images by
        split, class and source); `label_told_by`, the AUROC with which each thing that is not anatomy
        predicts the label by itself, in the source where it predicts most; `appearance` (`audit_appearance`).
    """
    scores = score_appearance(cohort)
    findings = _audit_images(cohort, scores)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(findings, indent=2) + "\n")
    write_manifest(cohort, folder / "manifest.csv")
    figures = plot_images(cohort, _pairs_to_see(cohort), augmentation)
    if findings["appearance"]["statistics"]:
        figures["appearance"] = plot_appearance(cohort, findings["appearance"], scores)
    plots = {name: as_data_uri(figure) for name, figure in figures.items()}
    (folder / PAGE).write_text(_page(cohort, findings, plots), encoding="utf-8")
    return findings


def _audit_images(cohort: Cohort, scores: np.ndarray) -> dict:
    correlation = cohort.cache.copies()[1]
    groups = cohort.copy_groups()
    readable, facts = cohort.reason != UNREADABLE, cohort.cache.facts
    seen = {"text": facts["text_rows"] >= TEXT_ROWS, "colour": facts["colour_share"] >= COLOUR_SHARE}
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
            "as_given": _crossing(cohort, cohort.given),
            "as_used": _crossing(cohort, cohort.split),
        },
        "overlays": {name: _by_class(cohort, found & readable) for name, found in seen.items()},
        "searched_for_text": int(np.sum(np.minimum(facts["width"], facts["height"]) >= TEXT_SIDE)),
        "blank": int(np.sum(readable & facts["blank"])),
        "balance": {
            split: {
                source: _by_class(cohort, (cohort.split == split) & (cohort.source == source))
                for source in np.unique(cohort.source)
            }
            for split in [*SPLITS, *sorted(set(cohort.split) - {*SPLITS, ""})]
        },
        "label_told_by": _label_told_by(cohort),
        "appearance": audit_appearance(cohort, scores),
    }


def _by_class(cohort: Cohort, chosen: np.ndarray) -> dict[str, int]:
    return {label: int(np.sum(chosen & (cohort.label == index))) for index, label in enumerate(LABELS)}


def _crossing(cohort: Cohort, split: np.ndarray) -> dict[str, int]:
    """Count what is in more than one of the splits, (n,) as given or as used."""
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
    """Refuse images on which no metric could be trusted.

    The rules of cohort.py remove leaks between splits; they are counted here anew, from the splits as they
    are used. What the rules can't mend is weights that have seen the test images in an earlier run.

    Args:
        cohort: split.
        seen: the images that the starting weights were trained or chosen by (`read_seen`); empty for none.
        allowed: whether to go on all the same.

    Returns:
        Numbers of `patients` and `duplicate_groups` in two splits, and of `films_seen` before: test images
        that the weights were trained or chosen by, and validation images that they were trained on.

    Raises:
        UsageError: one is not 0, and not allowed.
    """
    crossed = _crossing(cohort, cohort.split)
    trained_on = [row for row in seen if row["split"] == "train"]
    chosen_by = [row for row in seen if row["split"] in TEACHING]
    images_seen = taught(cohort, cohort.rows("test"), chosen_by).sum()
    images_seen += taught(cohort, cohort.rows("validation"), trained_on).sum()
    left = {
        "patients": crossed["patients_fine"],
        "duplicate_groups": crossed["duplicate_groups"],
        "films_seen": int(images_seen),
    }
    if any(left.values()) and not allowed:
        raise UsageError(
            "leakage",
            f"leakage is left: {left['patients']} patients and {left['duplicate_groups']} groups of copies "
            f"in two splits, {left['films_seen']} validation and test images that the starting weights were "
            "trained on; start from other weights or keep their split, or go on with --allow_leakage true, "
            "which the report and the model's config.json will say",
        )
    return left


def taught(cohort: Cohort, rows: np.ndarray, seen: list[dict[str, str]]) -> np.ndarray:
    """Tell which images of (k,) rows, or their patients, are among the lines of `read_seen`: (k,) bool.

    By the bytes of the image, or by its patient where the id means the same in every copy of the data set
    (`is_global_id`). An image that was saved anew, of a patient without such an id, is not recognised.
    """
    hashes = {row["content_hash"].encode() for row in seen}
    patients = {row["patient_id"] for row in seen if is_global_id(row["patient_id"])}
    # Manifests of earlier versions have person1000 for both series.
    patients |= {f"{patient}_{series}" for patient in patients for series in SERIES}
    found = [cohort.cache.facts["sha256"][row] in hashes or cohort.patient[row] in patients for row in rows]
    return np.array(found, dtype=bool)


def _label_told_by(cohort: Cohort) -> dict[str, float]:
    """AUROC of each sign by itself over the images that are used: over all, or in the one source where it is
    higher, since a sign of one source only is lost in the sum."""
    rows = np.flatnonzero(np.isin(cohort.split, SPLITS))
    label, source, facts = cohort.label[rows], cohort.source[rows], cohort.cache.facts[rows]
    # Each source scored by its share of pneumonia: the best that knowing nothing but the source can do.
    share = {one: label[source == one].mean() for one in set(source)}
    told = {"source": auroc_alone(np.array([share[one] for one in source]), label)}
    signs = {
        "width of the file": facts["width"],
        "height of the file": facts["height"],
        "width / height": facts["width"] / np.maximum(facts["height"], 1),
        "burned-in text": facts["text_rows"] >= TEXT_ROWS,
        "colour": facts["colour_share"] >= COLOUR_SHARE,
    }
    # With fewer than ten images of a class luck predicts the label.
    large = [source == one for one in share if np.bincount(label[source == one], minlength=2).min() >= 10]
    for name, sign in signs.items():
        areas = [auroc_alone(sign[some], label[some]) for some in (np.full(len(label), True), *large)]
        told[name] = max((area for area in areas if area is not None), default=None)
    return {name: round(area, 4) for name, area in told.items() if area is not None}


def auroc_alone(values: np.ndarray, label: np.ndarray) -> float | None:
    """Compute the AUROC of (k,) numbers for (k,) labels, whichever class has the larger ones; 0.5 is chance.

    None where a class has no image.
    """
    if len(np.unique(label)) < 2:
        return None
    area = float(roc_auc_score(label, values))
    return max(area, 1 - area)


def summary(findings: dict) -> list[str]:
    """Write the findings in a few lines, for a terminal."""
    removed, copies, leaks = findings["removed"], findings["duplicates"], findings["leakage"]
    lines = [
        f"{findings['films']} images, sources: {', '.join(findings['sources'])}; left out: "
        + ", ".join(f"{count} ({reason})" for reason, count in removed.items()),
        f"{copies['groups']} groups of copies ({copies['films']} images), "
        f"{copies['groups_of_equal_bytes']} of them of equal bytes; "
        f"{len(findings['conflicting_labels'])} groups with different labels",
    ]
    for name, leak in leaks.items():
        lines.append(
            f"in two splits, {name.replace('_', ' ')}: {leak['patients_fine']} patients "
            f"({leak['patients_coarse']} by the coarse reading of the id), "
            f"{leak['duplicate_groups']} groups of copies"
        )
    for name, classes in findings["overlays"].items():
        if any(classes.values()):
            found = ", ".join(f"{count} {label}" for label, count in classes.items())
            among = f" of {findings['searched_for_text']} that are large enough" if name == "text" else ""
            lines.append(f"images with burned-in {name}: {found}{among}")
    if findings["blank"]:
        lines.append(f"blank images, of one gray: {findings['blank']}")
    return [*lines, *audit_lines(findings["appearance"])]


def count_images(cohort: Cohort) -> tuple[list[str], list[list[str]]]:
    """Make head and rows of the table of counts: a row per split, per source in it where there are several,
    and a sum."""
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
    return ["split", *(KINDS[one] for one in kinds), "images", "patients", "ratio"], rows


def _pairs_to_see(cohort: Cohort) -> dict[str, list[Pair]]:
    """Pairs of rows for each of _PAIRS, with a word on each."""
    found, correlation = cohort.cache.copies()
    alike = zip(found.tolist(), correlation, strict=True)
    words = {tuple(pair): f"correlation {value:.3f}" for pair, value in alike}
    conflicting, across = [], []
    crossed = crossing_ids(cohort.duplicate_group, cohort.given)
    for first, *others in cohort.copy_groups():
        if other := [row for row in others if cohort.label[row] != cohort.label[first]]:
            conflicting.append((int(first), int(other[0])))
        if cohort.duplicate_group[first] in crossed:
            there = next(row for row in others if cohort.given[row] != cohort.given[first])
            across.append((int(first), int(there)))
    order = np.argsort(correlation, kind="stable")
    taken = [tuple(found[row].tolist()) for row in order if correlation[row] >= COPY]
    not_taken = [tuple(found[row].tolist()) for row in order[::-1] if correlation[row] < COPY]

    kinds = zip(_PAIRS, (conflicting, across, taken, not_taken), strict=True)
    return {
        name: [(*pair, words.get(pair, "equal bytes")) for pair in pairs[:_SHOWN]] for name, pairs in kinds
    }


def _page(cohort: Cohort, findings: dict, plots: Mapping[str, str]) -> str:
    leaks, appearance = findings["leakage"], findings["appearance"]
    # Every name is escaped.
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
            (one["statistic"], f"{one['auroc']:.3f}", *one["median"].values(), one["words"])
            for one in appearance["statistics"]
        ],
        against_train=[
            f"{label}: {figures_line({'auroc': figure}, ('auroc',))}"
            for label, figure in (appearance["test_against_train"] or {}).items()
        ],
        told=[(name, f"{value:.3f}") for name, value in findings["label_told_by"].items()],
        overlays=[(name, *classes.values()) for name, classes in findings["overlays"].items()],
        plots=plots,
    )
