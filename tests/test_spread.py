import pytest

from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.evaluation.spread import spread_line, spread_over_seeds


def _report(auroc):
    split = {name: {"value": 0.5} for name in METRICS} | {"auroc": {"value": auroc}}
    return {"splits": {"test": split}, "operating_point": {"validation": split, "test": split}}


def test_mean_and_sample_standard_deviation_are_those_of_the_textbook():
    spread = spread_over_seeds({7: _report(0.9), 3: _report(0.94), 5: _report(0.98)})
    auroc = spread["splits"]["test"]["auroc"]
    assert spread["seeds"] == [7, 3, 5] and auroc["values"] == [0.9, 0.94, 0.98]
    assert auroc["mean"] == pytest.approx(0.94) and auroc["sd"] == pytest.approx(0.04)
    assert spread["operating_point"]["test"]["accuracy"]["sd"] == 0
    assert "3 seeds" in spread_line(spread) and "auroc 0.9400 ± 0.0400" in spread_line(spread)


def test_the_metrics_with_proportions_swapped_are_spread_where_every_run_has_them():
    def with_swap(area):
        names = ("auroc", "sensitivity", "specificity")
        level = {name: {"value": area} for name in names}
        appearance = {"factor": 1.2, "proportions": {"1.0": {}, "1.2": level}}
        return {**_report(0.99), "checks": {"appearance": appearance}}

    spread = spread_over_seeds({0: with_swap(0.7), 1: with_swap(0.8)})
    swapped = spread["proportions_swapped"]
    assert swapped["factor"] == 1.2 and swapped["specificity"]["mean"] == pytest.approx(0.75)
    assert swapped["auroc"]["sd"] == pytest.approx(0.05 * 2**0.5) and swapped["auroc"]["values"] == [0.7, 0.8]
    assert "; proportions swapped by 1.2: auroc 0.7500 ± 0.0707" in spread_line(spread)
    assert "proportions_swapped" not in spread_over_seeds({0: with_swap(0.7), 1: _report(0.99)})


def test_one_seed_has_no_spread_and_an_undefined_figure_is_left_out():
    spread = spread_over_seeds({0: _report(None)})
    assert spread["splits"]["test"]["accuracy"]["sd"] is None and "auroc" not in spread["splits"]["test"]
    assert "auroc" not in spread_line(spread)
