"""The figures of one recipe over several seeds -> their mean and spread."""

from collections.abc import Sequence
from statistics import mean, stdev

from hf_pneumonia.evaluation.metrics import METRICS


def spread_over_seeds(reports: dict[int, dict]) -> dict:
    """Mean and spread of every figure over runs that differ in nothing but their seed.

    The spread is that of training (initial weights, order, augmentation); how far a figure depends on which
    patients are in the split is what its interval in each report says.

    Args:
        reports: report.json of each run, by seed.

    Returns:
        `seeds`, and under `splits` and `operating_point` for each split and figure `mean`, `sd` (of the
        sample, None for one seed) and `values` in the order of `seeds`. The same for the AUROC, sensitivity
        and specificity of `proportions_swapped`, where every run has them, with their `factor`. A figure that
        a run does not have is left out.
    """
    first = next(iter(reports.values()))
    checks = [report.get("checks", {}).get("appearance") for report in reports.values()]
    swapped = {}
    if all(checks):
        factor = checks[0]["factor"]
        levels = [check["proportions"][str(factor)] for check in checks]
        names = ("auroc", "sensitivity", "specificity")
        swapped["proportions_swapped"] = {"factor": factor, **_spread(levels, names)}
    return {
        "seeds": list(reports),
        "splits": {
            split: _spread([r["splits"][split] for r in reports.values()]) for split in first["splits"]
        },
        "operating_point": {
            split: _spread([r["operating_point"][split] for r in reports.values()])
            for split in ("validation", "test")
        },
        **swapped,
    }


def spread_line(spread: dict) -> str:
    """The test split in one line: every figure's mean and spread at threshold 0.5, and those with proportions
    swapped, at the operating point, where there are any."""
    line = f"test films, {len(spread['seeds'])} seeds, mean ± sd: {_shown(spread['splits']['test'])}"
    if swapped := dict(spread.get("proportions_swapped", {})):
        line += f"; proportions swapped by {swapped.pop('factor')}: {_shown(swapped)}"
    return line


def _shown(figures: dict) -> str:
    return ", ".join(
        f"{name} {figure['mean']:.4f}" + (f" ± {figure['sd']:.4f}" if figure["sd"] is not None else "")
        for name, figure in figures.items()
    )


def _spread(splits: list[dict], names: Sequence[str] = METRICS) -> dict:
    figures = {name: [split[name]["value"] for split in splits] for name in names}
    return {
        name: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
        for name, values in figures.items()
        if None not in values
    }
