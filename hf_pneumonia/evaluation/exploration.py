"""A film set -> a page that shows it to a person before anything is trained: pictures, and one index.html.

The page stands alone: pictures lie inside it, and it names no file and no address but those of the films that
can't be read.
"""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.overlays import TEXT_SIDE
from hf_pneumonia.evaluation.audit import auroc_alone
from hf_pneumonia.evaluation.exploration_plots import draw_films, ratio
from hf_pneumonia.evaluation.film_facts import KINDS, FilmFacts, measure_films
from hf_pneumonia.modeling.augment import Strength

# Unreadable films that are listed by name.
_LISTED = 20

_CSS = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 1rem;
  background: light-dark(#fff, #16181c); color: light-dark(#1b1d21, #e4e6ea) }
h1 { line-height: 1.2 }
h2 { margin-top: 2.5rem }
.private { border-left: .3rem solid #c0392b; padding: .1rem 0 .1rem .8rem; font-weight: 600 }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid light-dark(#d5d8de, #3a3e46) }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 5rem }
@media (max-width: 30rem) { table { font-size: .8rem } th, td { padding: .25rem .3rem } }
#counts tr:last-child { font-weight: 600 }
figure { margin: 1rem 0 }
img { display: block; width: 100%; max-width: 40rem; height: auto; border-radius: .4rem; background: #fff }
figcaption, .note { font-size: .9rem; color: light-dark(#555a63, #a4a9b3) }
"""


def explore_films(films: FilmSet, folder: Path, augmentation: Mapping[str, Strength]) -> None:
    """Write the pictures, `NAME.png`, and `index.html`, which holds them too, into a folder.

    Args:
        films: as `prepare_films` makes them.
        folder: made where missing; files of these names are replaced.
        augmentation: arguments of `Augment`, as a recipe has them.
    """
    facts = measure_films(films)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, picture in draw_films(facts, films.store, augmentation).items():
        picture.save(folder / f"{name}.png", optimize=True)
        pictures[name] = (folder / f"{name}.png").read_bytes()
    (folder / "index.html").write_text(_page(films, facts, pictures), encoding="utf-8")


def _page(films: FilmSet, facts: FilmFacts, pictures: Mapping[str, bytes]) -> str:
    patients = len(np.unique(facts.patient.astype(str)))
    title = f"{len(facts.row):,} chest films of {patients:,} patients"
    sizes, grays = [], []
    for kind in facts.kinds:
        width, height, gray = (_median(facts, kind, name) for name in ("width", "height", "brightness"))
        sizes.append(f"{KINDS[kind]} {width} x {height}")
        grays.append(f"{KINDS[kind]} {gray}")
    side = f"{films.store.size} x {films.store.size} pixels"

    def figure(name: str, alt: str, caption: str) -> str:
        data = base64.b64encode(pictures[name]).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
        return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"

    body = [
        f"<h1>{title}</h1>",
        '<p class="private">This page shows films of patients. Keep it, and the pictures beside it, as '
        "private as the films themselves.</p>",
        "<h2>What there is</h2>",
        _table("counts", *count_films(facts)),
        _note(
            "A film that no patient is known of counts as a patient of its own; one with films from several "
            "sources counts in each."
        ),
        figure(
            "class_distribution",
            "Bars: films of each class in each split",
            "Films by split and class, and films of PNEUMONIA for each NORMAL one.",
        ),
        "<h2>What was left out</h2>",
        _left_out(films),
        "<h2>Films</h2>",
        figure(
            "samples",
            "Sample films of each class, named by class, split and source",
            "Drawn at random, from every split and source in turn, at the shape of the original file.",
        ),
        "<h2>What tells the classes apart without a look at the lungs</h2>",
        "<p>A network learns whatever parts the classes, a size or a letter as soon as a lung. The last "
        "column says how well each of these alone does it: AUROC, from 0.5 (not at all) to 1 (always).</p>",
        _table("cues", *compare_kinds(facts)),
        _note(
            f"{_about_text(facts)} Grays are measured on squares of {side}, which is what a network sees: "
            "it can't tell a film's width, but a film that was squashed more shows it in every bone."
        ),
        figure(
            "image_sizes",
            f"Width, height and aspect ratio by class. Median pixels: {', '.join(sizes)}",
            "Size of the original files, a dot for each film, and their aspect ratio.",
        ),
        figure(
            "brightness",
            f"Histograms of brightness by class. Median mean gray: {', '.join(grays)}",
            "Mean gray of each film, and the gray of all pixels of a class; peaks at both ends are cut off.",
        ),
        "<h2>Films of one patient</h2>",
        figure(
            "films_per_patient",
            "Bars: patients of each class by the number of their films",
            "Films of one patient are much alike; no patient stands in two splits.",
        ),
        "<h2>Augmentation</h2>",
        figure(
            "augmentations",
            "A film of each class as it is, varied by each step of the augmentation, and mirrored",
            f"A training film of each class, {side}: as it is; each step alone at about its limit, one way "
            "and another; all together, as a network sees films in training; mirrored.",
        ),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def count_films(facts: FilmFacts) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of counts: a line for each split, for each source inside it where there
    are several, and one for all."""
    heads = ["split", *(KINDS[kind] for kind in facts.kinds), "films", "patients", "ratio"]

    def line(name: str, chosen: np.ndarray) -> list[str]:
        films = [int(np.sum(facts.kind[chosen] == kind)) for kind in range(len(KINDS))]
        patients = len(np.unique(facts.patient[chosen].astype(str)))
        numbers = [*(films[kind] for kind in facts.kinds), sum(films), patients]
        return [name, *(f"{number:,}" for number in numbers), ratio(films[0], films[1])]

    lines = []
    sources = np.unique(facts.source.astype(str)).tolist()
    for split in facts.splits:
        lines.append(line(split, facts.split == split))
        for source in sources if len(sources) > 1 else ():
            chosen = (facts.split == split) & (facts.source == source)
            if chosen.any():
                lines.append(line(f"{split}, {source}", chosen))
    return heads, [*lines, line("all", np.ones(len(facts.row), dtype=bool))]


def compare_kinds(facts: FilmFacts) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of what the classes differ in."""
    heads = ["", *(KINDS[kind] for kind in facts.kinds), "AUROC alone"]
    medians = {
        "width": "median width, pixels",
        "height": "median height, pixels",
        "aspect": "median width / height",
        "brightness": "median mean gray, 0 to 255",
    }
    lines = []
    for name, title in medians.items():
        cells = [_median(facts, kind, name) for kind in facts.kinds]
        lines.append([title, *cells, _auroc(getattr(facts, name), facts.kind)])
    for name, title, judged in (
        ("text", "films with letters", facts.searched),
        ("colour", "films with colour", np.ones(len(facts.row), dtype=bool)),
    ):
        found = getattr(facts, name)
        cells = [_share(found[judged & (facts.kind == kind)]) for kind in facts.kinds]
        lines.append([title, *cells, _auroc(found[judged], facts.kind[judged])])
    return heads, lines


def _median(facts: FilmFacts, kind: int, name: str) -> str:
    """Median over the films of a kind; a ratio with two digits after the point, all else with at most one."""
    value = float(np.median(getattr(facts, name)[facts.kind == kind]))
    return f"{value:.2f}" if name == "aspect" else f"{value:,.1f}".removesuffix(".0")


def _share(found: np.ndarray) -> str:
    return f"{found.sum():,} ({found.mean():.1%})" if len(found) else "–"


def _auroc(values: np.ndarray, kind: np.ndarray) -> str:
    area = auroc_alone(values, kind)
    return "–" if area is None else f"{area:.3f}"


def _about_text(facts: FilmFacts) -> str:
    if small := int(np.sum(~facts.searched)):
        return (
            f"Letters are looked for on films of {TEXT_SIDE} pixels a side and more: {small:,} of "
            f"{len(facts.row):,} are too small."
        )
    return "Letters are guessed from patterns, not read: side markers alone do not count."


def _left_out(films: FilmSet) -> str:
    counts = films.counts()
    removed = [[reason, f"{number:,}"] for reason, number in counts["removed"].items()]
    # By their last name only: the way to the films is nobody's business.
    bad = [
        f"{Path(entry['file']).name}: {entry['reason'].replace(entry['file'], '…')}"
        for entry in counts["unreadable"]
    ]
    more = [f"and {len(bad) - _LISTED:,} more"] if len(bad) > _LISTED else []
    return (
        _table("removed", ["reason", "films"], removed)
        + _list("Decided about the splits:", counts["notes"])
        + _list("Films that can't be read:", [*bad[:_LISTED], *more])
    )


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<p>{title}</p><ul>{items}</ul>" if items else ""


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(name: str, heads: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="table"><table id="{name}">{inner}</table></div>'
