"""Appearance audit: how well the appearance of the images alone predicts their label, and their split."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.appearance import (
    MIN_PATIENTS,
    STATISTICS,
    appearance_scores,
    describe,
    fit_appearance,
)
from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.rows import SPLITS
from hf_pneumonia.evaluation.figures import auroc, figures_line
from hf_pneumonia.evaluation.plots import GREEN, ORANGE, STYLE

_BEST = 5  # statistics that are listed and drawn
_NAMED = 3  # of these in a line
_PREDICTS = 0.6  # least AUROC that counts as a prediction, or as a difference between splits
_PIXELS = ("width", "height")
_RATES = ("specificity", "sensitivity")  # measured on the images of each class


def score_appearance(films: FilmSet) -> np.ndarray:
    """Score the images that are used by their appearance alone.

    Cross-fitted by patient; where the sources have a test split of their own, its images are scored by the
    fit on all others.

    Returns:
        (n,) float64 logits of PNEUMONIA by row of the store; NaN for other images, and for all where a class
        has too few patients.
    """
    scores = np.full(len(films.file), np.nan)
    rows, test = _rows(films)
    found = appearance_scores(_statistics(films, rows), films.label[rows], films.patient[rows])
    if found is not None:
        scores[rows] = found
    if found is not None and len(test):
        fitted = fit_appearance(_statistics(films, rows), films.label[rows])
        scores[test] = fitted.decision_function(_statistics(films, test))
    return scores


def audit_appearance(films: FilmSet, scores: np.ndarray) -> dict:
    """Measure how well appearance alone predicts the label, and which statistics predict it best.

    Args:
        films: split.
        scores: (n,) from `score_appearance`.

    Returns:
        `images`, the number that is judged: those in SPLITS, without a test split that the sources have.
        `auroc` of the scores: {"value", "ci95"}, the interval by patient. `statistics`, the five with the
        highest AUROC by themselves: `statistic`, `auroc`, `median` by class, and in `words` what the NORMAL
        images are. `test_against_train`: by class the AUROC, {"value", "ci95"}, by which appearance tells the
        images of the sources' own test split from the training images of that class; None where the sources
        have no test split, or nothing was trained on. Values are None, and `statistics` empty, where there
        are too few patients.
    """
    rows, test = _rows(films)
    label = films.label[rows]
    judged = not np.isnan(scores).all()
    train = np.flatnonzero((films.given == "train") & np.isin(films.split, SPLITS))
    return {
        "images": len(rows),
        "auroc": _auroc(label, scores[rows] if judged else None, films.patient[rows]),
        "statistics": _best_statistics(_statistics(films, rows), label) if judged else [],
        "test_against_train": {
            name: _difference(films, train[films.label[train] == index], test[films.label[test] == index])
            for index, name in enumerate(LABELS)
        }
        if len(test)
        else None,
    }


def audit_lines(found: dict) -> list[str]:
    """Say in words what `audit_appearance` found, a line each, for a log."""
    shown = figures_line(found, ("auroc",))
    if found["auroc"]["value"] is None:
        lines = [
            f"appearance: fewer than {MIN_PATIENTS} patients of a class are too few to measure whether it "
            "predicts the label"
        ]
    elif _least(found["auroc"]) <= 0.5 or found["auroc"]["value"] < _PREDICTS:
        lines = [f"appearance alone is not shown to predict the label: {shown}"]
    else:
        words = ", ".join(_with_medians(one) for one in found["statistics"][:_NAMED])
        lines = [f"appearance alone predicts the label with {shown}: {LABELS[0]} images are {words}"]
    for (name, figure), rate in zip((found["test_against_train"] or {}).items(), _RATES, strict=False):
        if figure["value"] is not None and _least(figure) > _PREDICTS:
            shown = figures_line({"auroc": figure}, ("auroc",))
            lines.append(
                f"the test's {name} images look different from training's ({shown}): expect another {rate}"
            )
    return lines


@matplotlib.rc_context(STYLE)
def plot_appearance(films: FilmSet, found: dict, scores: np.ndarray) -> Figure:
    """Draw histograms by class of the best statistics and of the scores; a dashed line is a test split that
    the sources have.

    Args:
        films, scores: as for `audit_appearance`.
        found: its findings, with statistics.
    """
    rows, test = _rows(films)
    panels = {}
    for name in (one["statistic"] for one in found["statistics"]):
        unit = " (pixels)" if name in _PIXELS else ""
        panels[name + unit] = films.store.facts["appearance"][:, STATISTICS.index(name)]
    panels["appearance score, cross-fitted (logit)"] = scores
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        # Without the outermost 0.5% on either side, which would squeeze the rest.
        low, high = np.quantile(values[rows], [0.005, 0.995])
        bins = np.linspace(low, high, 21)
        for index, (label, color) in enumerate(zip(LABELS, (GREEN, ORANGE), strict=True)):
            for part, style in ((rows, "-"), (test, "--")):
                part = part[films.label[part] == index]
                if len(part):
                    counts, edges = np.histogram(values[part].clip(low, high), bins)
                    title = label + (", test" if style == "--" else "")
                    axes.stairs(counts / len(part), edges, color=color, linestyle=style, label=title)
        axes.set(xlabel=name, yticks=[])
        axes.locator_params("x", nbins=5)
        axes.grid(False)
    for axes in figure.axes[::3]:
        axes.set_ylabel("share of images")
    handles, titles = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, titles, frameon=False, loc="outside upper center", ncols=4)
    return figure


def _rows(films: FilmSet) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are judged, and rows of a test split that the sources have, where others are trained on."""
    used, test = np.flatnonzero(np.isin(films.split, SPLITS)), films.rows("test")
    if np.all(films.given[test] == "test") and "train" in films.split:
        return np.setdiff1d(used, test), test
    return used, test[:0]


def _statistics(films: FilmSet, rows: np.ndarray) -> np.ndarray:
    return films.store.facts["appearance"][rows]


def _auroc(label: np.ndarray, scores: np.ndarray | None, patient: Sequence[str]) -> dict:
    return {"value": None, "ci95": None} if scores is None else auroc(label, scores, patient)


def _best_statistics(statistics: np.ndarray, label: np.ndarray) -> list[dict]:
    areas = np.array([roc_auc_score(label, values) for values in statistics.T])
    best = np.argsort(-np.abs(areas - 0.5), kind="stable")[:_BEST]
    return [
        {
            "statistic": STATISTICS[one],
            "auroc": round(float(max(areas[one], 1 - areas[one])), 4),
            "median": {
                name: round(float(np.median(statistics[label == index, one])), 4)
                for index, name in enumerate(LABELS)
            },
            "words": describe(STATISTICS[one], more=bool(areas[one] < 0.5)),
        }
        for one in best
    ]


def _difference(films: FilmSet, train: np.ndarray, test: np.ndarray) -> dict:
    """AUROC by which appearance tells the test images of a class from its training images."""
    rows = np.concatenate([train, test])
    is_test = np.isin(rows, test).astype(int)
    scores = appearance_scores(_statistics(films, rows), is_test, films.patient[rows])
    return _auroc(is_test, scores, films.patient[rows])


def _least(figure: dict) -> float:
    return figure["ci95"][0] if figure["ci95"] else figure["value"]


def _with_medians(one: dict) -> str:
    """Words for a statistic; sizes of files with their medians in pixels."""
    if one["statistic"] not in _PIXELS:
        return one["words"]
    return "{} (median {:.0f} against {:.0f})".format(one["words"], *one["median"].values())
