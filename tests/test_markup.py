"""File and run names with markup are shown as text in reports."""

import json
import re

import markdown_it
import numpy as np
import pytest
from browser import Parsed
from conftest import write_images

from hf_pneumonia.data.cohort import prepare_cohort
from hf_pneumonia.evaluation.audit import write_audit
from hf_pneumonia.evaluation.compare import write_comparison
from hf_pneumonia.evaluation.errors import KINDS, ErrorCase, draw_errors, shown_errors
from hf_pneumonia.evaluation.scoring import Predictions

NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "<script>alert(1)<&script>.png",
    "a|b`c`*d*_e_[f](javascript:alert(1)).png",
    "![x](x.png) \\| # - 1. .png",
    "&lt;b&gt;&#60;b.png",
    "line\nbreak <b>.png",
    "```\n<img src=x>.png",
    "\"><img src=x>'.png",
    "$\\frac{x$ $_{.png",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images in a folder with markup in its name; under NAMES, unreadable files and copies in conflict."""
    root = tmp_path_factory.mktemp("x") / "<b onclick=alert(1)>images|`x`"
    write_images(root, 12, 12)
    for number, name in enumerate(NAMES):
        (root / "NORMAL" / name).write_bytes(b"no image")
        (root / "NORMAL" / f"copy{number} {name}").write_bytes(
            (root / "PNEUMONIA" / f"person{number}_bacteria_{number}.jpeg").read_bytes()
        )
    return prepare_cohort(str(root), 32, tmp_path_factory.mktemp("cache"), max_unreadable=1)


def _assert_names_are_text(html: str, images: str) -> None:
    """No tag, link or handler comes from a name; each image source begins with `images`."""
    page = Parsed(html)
    assert page.values("src") and all(src.startswith(images) for src in page.values("src"))
    assert not {"script", "b", "a"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    text = " ".join("".join(page.texts).split())
    for name in NAMES:
        assert " ".join(name.split()) in text


def test_on_the_page_of_an_audit_names_are_text(images, tmp_path):
    findings = write_audit(images, tmp_path, {"rotation": 5.0})
    assert len(findings["unreadable"]) == len(NAMES) and len(findings["conflicting_labels"]) == len(NAMES)
    _assert_names_are_text((tmp_path / "audit.html").read_text(), "data:image/png")
    written = json.loads((tmp_path / "audit.json").read_text())
    assert {re.sub(r".*/NORMAL/", "", image["file"]) for image in written["unreadable"]} == set(NAMES)


def test_in_the_plot_of_errors_names_are_text(tmp_path):
    cases = [ErrorCase(kind, "test", 0, name, "p", 0, 0.9) for name in NAMES for kind in KINDS]
    images = np.zeros((len(cases), 8, 8), np.uint8)
    figure = draw_errors(shown_errors(cases), images, None, 0.5)
    figure.savefig(tmp_path / "x.png", dpi=20)


def test_in_a_comparison_names_of_runs_are_text(tmp_path):
    figure = {"value": 0.9, "ci95": [0.8, 1.0]}
    names = ("auroc", "auroc_swapped", "sensitivity", "specificity", "accuracy", "brier", "ece")
    plain = {"films": 4, "threshold": 0.5, "parameters": None, "training_seconds": None}
    runs = [{"name": name, **plain, **dict.fromkeys(names, figure)} for name in NAMES]
    ones = np.array(["1", "2", "3", "4"])
    scored = Predictions(ones, ones, np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9]))
    comparison = {"runs": runs, "tests": [], "same_films": True, "films_shared": 4}
    write_comparison(comparison, dict.fromkeys(NAMES, scored), tmp_path)
    text = (tmp_path / "compare.md").read_text()
    html = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    _assert_names_are_text(html, "roc.png")
