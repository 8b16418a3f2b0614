"""Audit of a data set: audit.html, one page that stands alone, audit.json and manifest.csv."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hf_pneumonia.data.appearance import STATISTICS
from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.manifest import write_manifest
from hf_pneumonia.evaluation.appearance_audit import audit_lines, plot_appearance, score_appearance
from hf_pneumonia.evaluation.audit import audit_films, crossing_ids
from hf_pneumonia.evaluation.audit_plots import KINDS, Pair, plot_films
from hf_pneumonia.evaluation.figures import figures_line
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


def write_audit(films: FilmSet, folder: Path, augmentation: Mapping[str, Strength] | None = None) -> dict:
    """Audit the images, and write what was found.

    Args:
        films: split.
        folder: made where missing; files of an earlier audit are replaced.
        augmentation: arguments of `Augment`, to be drawn; None draws the copies and the appearance alone.

    Returns:
        The findings, as `audit_films` gives them.
    """
    scores = score_appearance(films)
    findings = audit_films(films, scores)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(findings, indent=2) + "\n")
    write_manifest(films, folder / "manifest.csv")
    figures = plot_films(films, _pairs_to_see(films), augmentation)
    if findings["appearance"]["statistics"]:
        figures["appearance"] = plot_appearance(films, findings["appearance"], scores)
    plots = {name: _data_uri(figure) for name, figure in figures.items()}
    (folder / PAGE).write_text(_page(films, findings, plots), encoding="utf-8")
    return findings


def summary(findings: dict) -> list[str]:
    """The findings in a few lines, for a terminal."""
    removed, copies, leaks = findings["removed"], findings["duplicates"], findings["leakage"]
    lines = [
        f"{findings['films']} films, sources: {', '.join(findings['sources'])}; left out: "
        + ", ".join(f"{count} ({reason})" for reason, count in removed.items()),
        f"{copies['groups']} groups of copies ({copies['films']} films), "
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
            lines.append(f"films with burned-in {name}: {found}{among}")
    if findings["blank"]:
        lines.append(f"blank films, of one gray: {findings['blank']}")
    return [*lines, *audit_lines(findings["appearance"])]


def count_films(films: FilmSet) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of counts: a row per split, per source in it where there are several, and a
    sum."""
    kind = np.where(films.split == "covid", len(KINDS) - 1, films.label)
    kinds = np.unique(kind[films.split != ""]).tolist()
    sources = np.unique(films.source).tolist()

    def row(name: str, chosen: np.ndarray) -> list[str]:
        counts = np.bincount(kind[chosen], minlength=len(KINDS))
        patients = len(np.unique(films.patient[chosen].astype(str)))
        ratio = f"1 : {counts[1] / counts[0]:.3g}" if counts[0] and counts[1] else "–"
        numbers = [*counts[kinds], chosen.sum(), patients]
        return [name, *(f"{number:,}" for number in numbers), ratio]

    rows = []
    for split in (name for name in films.counts()["splits"] if name in films.split):
        chosen = films.split == split
        rows.append(row(split, chosen))
        for source in sources if len(sources) > 1 else ():
            if (chosen & (films.source == source)).any():
                rows.append(row(f"{split}, {source}", chosen & (films.source == source)))
    rows.append(row("all", films.split != ""))
    return ["split", *(KINDS[one] for one in kinds), "images", "patients", "ratio"], rows


def _pairs_to_see(films: FilmSet) -> dict[str, list[Pair]]:
    """Pairs of rows for each of _PAIRS, with a word on each."""
    found, correlation = films.store.copies()
    likeness = {tuple(pair): float(value) for pair, value in zip(found.tolist(), correlation, strict=True)}
    conflicting, across = [], []
    crossed = crossing_ids(films.duplicate_group, films.given)
    for first, *others in films.copy_groups():
        if other := [row for row in others if films.label[row] != films.label[first]]:
            conflicting.append((int(first), int(other[0])))
        if films.duplicate_group[first] in crossed:
            there = next(row for row in others if films.given[row] != films.given[first])
            across.append((int(first), int(there)))
    order = np.argsort(correlation, kind="stable")
    taken = [tuple(found[row].tolist()) for row in order if correlation[row] >= COPY]
    not_taken = [tuple(found[row].tolist()) for row in order[::-1] if correlation[row] < COPY]
    return {
        name: [
            (*pair, f"correlation {likeness[pair]:.3f}" if pair in likeness else "equal bytes")
            for pair in pairs[:_SHOWN]
        ]
        for name, pairs in zip(_PAIRS, (conflicting, across, taken, not_taken), strict=True)
    }


def _data_uri(figure: Figure) -> str:
    """The figure as a PNG of 256 colours: images are gray, and a third the size."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png")
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"


def _page(films: FilmSet, findings: dict, plots: Mapping[str, str]) -> str:
    leaks, appearance = findings["leakage"], findings["appearance"]
    # Every name is escaped.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        findings=findings,
        summary=summary(findings),
        counts=count_films(films),
        notes=films.notes,
        unreadable=[f"{film['file']}: {film['reason']}" for film in findings["unreadable"]],
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
