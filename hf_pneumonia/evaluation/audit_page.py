"""Findings of an audit -> audit.json, audit.md with pictures of the pairs to look at, manifest.csv."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_pneumonia.data.appearance import STATISTICS
from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.manifest import write_manifest
from hf_pneumonia.data.overlays import TEXT_ROWS
from hf_pneumonia.evaluation.appearance_audit import audit_lines, plot_appearance, score_appearance
from hf_pneumonia.evaluation.audit import audit_films, crossing_ids
from hf_pneumonia.evaluation.figures import figures_line

_APPEARANCE = "appearance.png"
_SHOWN = 6  # pairs in a picture
_LISTED = 20  # lines of a list; audit.json and the manifest have all


def write_audit(films: FilmSet, folder: Path) -> dict:
    """Audit the films, and write what was found.

    Args:
        folder: made where missing; files of an earlier audit are replaced.

    Returns:
        The findings, as `audit_films` gives them.
    """
    scores = score_appearance(films)
    findings = audit_films(films, scores)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(findings, indent=2) + "\n")
    write_manifest(films, folder / "manifest.csv")
    pictures = {}
    for name, (title, pairs) in _pairs_to_see(films).items():
        (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier audit
        if pairs:
            _draw_pairs(films, pairs, folder / f"{name}.png")
            pictures[name] = title
    (folder / _APPEARANCE).unlink(missing_ok=True)
    if findings["appearance"]["statistics"]:
        plot_appearance(films, findings["appearance"], scores, folder / _APPEARANCE)
    (folder / "audit.md").write_text(_page(films, findings, pictures))
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


def _pairs_to_see(films: FilmSet) -> dict[str, tuple[str, list[tuple[int, int, str]]]]:
    """Name of a picture -> title, and the pairs of rows with a word on each."""
    found, correlation = films.store.copies()
    likeness = {tuple(pair): float(value) for pair, value in zip(found.tolist(), correlation, strict=True)}

    def word(pair: tuple[int, int]) -> str:
        return f"correlation {likeness[pair]:.3f}" if pair in likeness else "equal bytes"

    groups = films.copy_groups()
    conflicting, across = [], []
    crossed = crossing_ids(films.duplicate_group, films.given)
    for rows in groups:
        first = rows[0]
        other = next((row for row in rows if films.label[row] != films.label[first]), None)
        if other is not None:
            conflicting.append((int(first), int(other)))
        if films.duplicate_group[first] in crossed:
            there = next(row for row in rows if films.given[row] != films.given[first])
            across.append((int(first), int(there)))
    order = np.argsort(correlation, kind="stable")
    taken = [tuple(found[row].tolist()) for row in order if correlation[row] >= COPY]
    not_taken = [tuple(found[row].tolist()) for row in order[::-1] if correlation[row] < COPY]
    chosen = {
        "different_labels": ("Copies with different labels", conflicting),
        "across_splits": ("Copies in two splits, as the sources have them", across),
        "least_alike": ("The least alike that were taken for copies", taken),
        "most_alike": ("The most alike that were not taken for copies", not_taken),
    }
    return {
        name: (title, [(*pair, word(pair)) for pair in pairs[:_SHOWN]])
        for name, (title, pairs) in chosen.items()
    }


def _draw_pairs(films: FilmSet, pairs: Sequence[tuple[int, int, str]], path: Path) -> None:
    """Two films side by side with what is known of each, pair below pair."""
    side, line, gap = 224, 16, 12
    height = side + 3 * line + gap
    sheet = Image.new("L", (2 * side + 3 * gap, height * len(pairs) + gap), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (first, second, word) in enumerate(pairs):
        top = gap + number * height
        pen.text((gap, top), word, fill=0, font=font)
        for column, row in enumerate((first, second)):
            left = gap + column * (side + gap)
            film = Image.fromarray(films.store[[row]][0]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(film, (left, top + line))
            fact = films.store.facts[row]
            lines = (
                f"{LABELS[films.label[row]]}, {films.given[row]}, {fact['width']} x {fact['height']}",
                _shorten(f"{films.source[row]}: {Path(films.file[row]).name}", side, font),
            )
            for index, text in enumerate(lines):
                pen.text((left, top + side + (index + 1) * line), text, fill=0, font=font)
    sheet.save(path, optimize=True)


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > width:
        text = "..." + text[4:]
    return text


def _page(films: FilmSet, findings: dict, pictures: dict[str, str]) -> str:
    """audit.md; the pictures show films of patients, and the names of files may name them."""
    leaks, copies = findings["leakage"], findings["duplicates"]
    readings = {
        "patients_fine": "patients, by their id",
        "patients_coarse": "patients, by the coarse reading of their id",
        "duplicate_groups": "groups of copies",
    }
    sections = [
        "# Audit",
        "These pages show films and name files: keep them where the films are kept.",
        _list(summary(findings)),
        "## Films and sources",
        _table(
            ["split", "source", *LABELS],
            [
                [split, source, *classes.values()]
                for split, sources in findings["balance"].items()
                for source, classes in sources.items()
            ],
        ),
        _table(["left out because", "films"], findings["removed"].items()),
        _list(films.notes),
        "## In more than one split",
        _table(
            ["", "as the sources have it", "as it is used"],
            [[text, leaks["as_given"][key], leaks["as_used"][key]] for key, text in readings.items()],
        ),
        "The test split wins over validation, and validation over train. By the coarse reading IM-0383 and "
        "NORMAL2-IM-0383 are one patient, and so are person1000_bacteria and person1000_virus. Splits that "
        "are cut here keep them together; splits that the sources have go by the id as it is.",
        "## Copies",
        f"{copies['groups']} groups of {copies['films']} films, {copies['groups_across_sources']} of them "
        f"across sources; {copies['pairs_by_pixels']} pairs found by pixels: correlation {COPY} or more.",
        *[f"### {title}\n\n![{title}]({name}.png)" for name, title in pictures.items()],
        "## Copies with different labels",
        _list([", ".join(names) for names in findings["conflicting_labels"]]),
        "## Unreadable",
        _list([f"{film['file']}: {film['reason']}" for film in findings["unreadable"]]),
        *_appearance(findings["appearance"]),
        "## What else tells the label",
        "AUROC of one sign by itself, without a look at the lungs: 0.5 tells nothing, 1 tells all; over all "
        "films, or in the source where it tells more. A network can learn whatever tells much here.",
        _table(["sign", "AUROC"], [[name, f"{v:.3f}"] for name, v in findings["label_told_by"].items()]),
        f"Films with burned-in text ({TEXT_ROWS} or more rows of letters near an edge) or colour. "
        f"{findings['searched_for_text']} films were searched for text; the others are too small.",
        _table(["", *LABELS], [[name, *classes.values()] for name, classes in findings["overlays"].items()]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _appearance(found: dict) -> list[str]:
    """Sections of audit.md about the appearance."""
    sections = [
        "## Appearance",
        f"{len(STATISTICS)} statistics of the whole image and its file. A network that reads them has a high "
        "AUROC here, and not where images are taken in another way. A warning, no proof: a large opacity "
        "changes some of them, too (simulated images without a shortcut: AUROC 0.80).",
        _list(audit_lines(found)),
    ]
    if found["statistics"]:
        sections += [
            _table(
                ["statistic", "AUROC by itself", *(f"median, {label}" for label in LABELS), "NORMAL images"],
                [
                    [one["statistic"], f"{one['auroc']:.3f}", *one["median"].values(), one["words"]]
                    for one in found["statistics"]
                ],
            ),
            f"![Histograms of the best statistics and of the score]({_APPEARANCE})",
        ]
    if found["test_against_train"]:
        sections += [
            "How well appearance tells the test images of a class from its training images; 0.5 is chance:",
            _list(
                [
                    f"{label}: {figures_line({'auroc': figure}, ('auroc',))}"
                    for label, figure in found["test_against_train"].items()
                ]
            ),
        ]
    return sections


def _table(head: Sequence[str], rows: Sequence) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def _list(items: Sequence[str]) -> str:
    if not items:
        return "None."
    lines = [f"- {plain(item)}" for item in items[:_LISTED]]
    if len(items) > _LISTED:
        lines.append(f"- and {len(items) - _LISTED} more: audit.json")
    return "\n".join(lines)


def plain(text: object) -> str:
    """A name, of a file or of anything else, as it can stand in Markdown: it is no markup."""
    escaped = str(text).replace("\\", "\\\\")
    for sign in "&|<>[]*_`":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped.replace("\n", " ")
