"""The checks that one AUROC leaves out, in one: what report.json has under `checks`, and the files of it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.appearance_check import check_appearance
from hf_pneumonia.evaluation.error_pack import count_errors, find_errors, write_errors
from hf_pneumonia.evaluation.error_sheet import draw_errors, shown_findings
from hf_pneumonia.evaluation.plots import (
    EXAMPLE_FACTORS,
    plot_robustness,
    plot_shortcuts,
    plot_swaps,
)
from hf_pneumonia.evaluation.robustness import check_robustness
from hf_pneumonia.evaluation.scoring import Predictions, pneumonia_probability
from hf_pneumonia.evaluation.shortcuts import check_shortcuts
from hf_pneumonia.evaluation.subgroups import check_subgroups
from hf_pneumonia.evaluation.swaps import stretch
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.heatmap import heat_maps


def run_checks(
    model: torch.nn.Module,
    films: FilmSet,
    predictions: Mapping[str, Predictions],
    threshold: float,
    batch_size: int,
) -> dict:
    """Appearance, shortcuts, robustness, subgroups and errors, as plain values. To be called by all processes
    together.

    Four forward passes over the films of the first split, and 26 over 300 of them.

    Args:
        model, batch_size: as for `score_films`.
        films: the store, and the source of each row. Appearance is learned from its training images, where
            it has any.
        predictions: by split, all held out. The first split is checked, all are searched for errors.
        threshold: the operating point.

    Returns:
        `split` and `threshold`, and `appearance`, `shortcuts`, `robustness` and `subgroups` as the check of
        that name gives them, and `errors`, the counts. No file or patient is named.
    """
    split, checked = next(iter(predictions.items()))
    rows = films.rows(split)
    truth = (checked.label, checked.probability, checked.patient_id)
    findings = find_errors(predictions, threshold)
    return {
        "split": split,
        "threshold": threshold,
        "appearance": check_appearance(model, films, rows, *truth, threshold, batch_size),
        "shortcuts": check_shortcuts(model, films.store, rows, *truth, batch_size),
        "robustness": check_robustness(model, films.store, rows, *truth, threshold, batch_size),
        "subgroups": check_subgroups(checked.file, films.source[rows], *truth, threshold),
        "errors": count_errors(findings, predictions),
    }


def write_checks(
    folder: Path,
    checks: dict,
    model: torch.nn.Module,
    films: FilmSet,
    predictions: Mapping[str, Predictions],
) -> None:
    """Write `plots/appearance.png`, where it was checked, `plots/shortcuts.png`, `plots/robustness.png`,
    `errors/errors.csv` and `errors/errors.png`.

    To be called by the main process alone. What is under `errors` names files and patients.

    Args:
        folder: of the run.
        checks: from `run_checks`; the other arguments are as they were there.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    (folder / "errors").mkdir(exist_ok=True)
    split = checks["split"]
    rows = {name: films.rows(name) for name in predictions}
    examples = [
        films.store[rows[split][predictions[split].label == label][:1]] for label in (0, 1)
    ]  # the first film of each class that there is
    plot_shortcuts(checks["shortcuts"], np.concatenate(examples)).savefig(folder / "plots" / "shortcuts.png")
    plot_robustness(checks["robustness"]).savefig(folder / "plots" / "robustness.png")

    if appearance := checks["appearance"]:
        shown = _stretched(examples[0], appearance["vertical"])
        probability = _probability(model, shown)
        plot_swaps(appearance, shown, probability).savefig(folder / "plots" / "appearance.png")

    findings = find_errors(predictions, checks["threshold"])
    write_errors(folder / "errors" / "errors.csv", findings)
    shown = shown_findings(findings)
    pictures = films.store[[rows[one.split][one.index] for one in shown]] if shown else np.zeros((0, 1, 1))
    maps, note = explain(model, pictures)
    sheet = draw_errors(shown, pictures, maps, checks["threshold"], note)
    sheet.savefig(folder / "errors" / "errors.png")


def _stretched(normal: np.ndarray, vertical: str) -> np.ndarray:
    """(1, h, w) uint8 normal image -> (k, h, w), stretched by each of EXAMPLE_FACTORS as in a swap."""
    way = "down" if vertical == LABELS[0] else "across"
    return np.concatenate([stretch(normal, **{way: factor}) for factor in EXAMPLE_FACTORS])


@torch.inference_mode()
def _probability(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """(k,) float64 probabilities of pneumonia of (k, h, w) uint8 images, by this process alone."""
    device = next(model.parameters()).device
    logits = model(network_input(torch.from_numpy(images).to(device))).logits
    return pneumonia_probability(logits.float().cpu())


def explain(model: torch.nn.Module, films: np.ndarray, batch_size: int = 8) -> tuple[np.ndarray | None, str]:
    """(n, h, w) heat maps of (n, h, w) uint8 films and "", or None and why there are none."""
    device = next(model.parameters()).device
    maps = []
    for start in range(0, len(films), batch_size):
        inputs = network_input(torch.from_numpy(films[start : start + batch_size]).to(device))
        try:
            maps.append(heat_maps(model, inputs).cpu().numpy())
        except ValueError as error:
            return None, str(error)
    return (np.concatenate(maps) if maps else None), ""
