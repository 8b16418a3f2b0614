import re

import pytest

from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.trade_off import (
    Setting,
    band_sentence,
    metrics_html,
    own_setting,
    rounded,
    setting_metrics,
    settings_of,
)  # fmt: skip

POINTS = {"threshold": [0.1, 0.4, 0.8], "sensitivity": [1.0, 0.95, 0.6], "specificity": [0.25, 0.9, 1.0]}
POINT = {"threshold": 0.4, "sensitivity": 0.95, "specificity": 0.9}
POINT["uncertain"] = {"low": 0.2, "high": 0.6, "risk": 0.02}


def _model(trade_off=POINTS, operating_point=POINT, band=(0.2, 0.6)):
    model = object.__new__(PneumoniaClassifier)  # without a network
    vars(model).update(trade_off=trade_off, operating_point=operating_point, band=band, threshold=0.4)
    return model


def test_the_slider_runs_over_the_models_points_and_starts_at_its_own():
    settings = settings_of(_model())
    assert settings == [Setting(0.1, 1, 0.25), Setting(0.4, 0.95, 0.9), Setting(0.8, 0.6, 1)]
    assert own_setting(settings, 0.4) == 1
    # A model that states only its operating point has one setting; a model without metrics has none.
    assert settings_of(_model(trade_off={})) == [Setting(0.4, 0.95, 0.9)]
    assert settings_of(_model(trade_off={}, operating_point={})) == []


def test_a_threshold_changed_in_the_config_gets_the_lower_values_of_its_neighbours():
    model = _model()
    model.threshold = 0.45
    settings = settings_of(model)
    points = [Setting(0.1, 1, 0.25), Setting(0.4, 0.95, 0.9), Setting(0.8, 0.6, 1)]
    assert settings == [*points[:2], Setting(0.45, 0.6, 0.9), points[2]]
    assert own_setting(settings, 0.45) == 2
    model.threshold = 0.9
    assert settings_of(model) == [*points, Setting(0.9, 0, 1)]


def test_a_share_is_rounded_and_0_and_100_percent_are_exact():
    for share, text in ((0.947, "95%"), (0.994, "99%"), (0.006, "1%"), (0.0, "0%"), (1.0, "100%")):
        assert rounded(share) == text
    assert {rounded(share) for share in (0.9951, 0.999999)} == {"> 99%"}
    assert (rounded(0.004), rounded(None)) == ("< 1%", "n/a")


def _predictive(sensitivity: float, specificity: float, prevalence: float | None) -> tuple:
    metrics = setting_metrics(Setting(0.5, sensitivity, specificity), prevalence)
    return metrics["PPV"], metrics["NPV"]


def test_predictive_values_are_those_of_a_table_of_1000_images():
    # Of 1,000 images 200 show pneumonia: 190 true and 80 false positives, 720 true and 10 false negatives.
    assert _predictive(0.95, 0.9, 20) == pytest.approx((190 / 270, 720 / 730))
    # 5 of 1,000: 4.75 true and 99.5 false positives, 895.5 true and 0.25 false negatives.
    assert _predictive(0.95, 0.9, 0.5) == pytest.approx((4.75 / 104.25, 895.5 / 895.75))


def test_predictive_values_that_validation_is_too_small_for_are_not_stated():
    # No false positives: of 1,000 images 100 true positives, 100 false negatives, 800 true negatives.
    assert _predictive(0.5, 1, 20) == (None, pytest.approx(800 / 900))
    # No false negatives: 200 true positives, 400 false positives.
    assert _predictive(1, 0.5, 20) == (pytest.approx(200 / 600), None)
    # No positives, or no negatives at all.
    assert _predictive(0, 1, 20) == (None, pytest.approx(0.8))
    assert _predictive(1, 0, 20) == (pytest.approx(0.2), None)
    assert _predictive(0, 0.5, 20)[0] is None and _predictive(0.5, 0, 20)[1] is None


@pytest.mark.parametrize("prevalence", [None, 0, 0.09, 99.95, -3, float("nan")])
def test_a_prevalence_out_of_range_gives_no_predictive_values_and_is_asked_for_again(prevalence):
    assert _predictive(0.95, 0.9, prevalence) == (None, None)
    assert "prevalence from 0.1 to 99.9" in metrics_html(_model(), settings_of(_model()), 1, prevalence)


def test_the_table_has_the_chosen_threshold_and_the_models_own():
    def cells(model, index):
        html = metrics_html(model, settings_of(model), index, 20)
        return re.findall("<t[hd](?: [^>]*)?>([^<]*)<", html)

    assert cells(_model(), 2) == [
        "", "Chosen", "Model&#x27;s own",
        "Threshold", "80%", "40%",
        "Sensitivity", "60%", "95%",
        "Specificity", "100%", "90%",
        "PPV", "n/a", "70%",
        "NPV", "91%", "99%",
    ]  # fmt: skip
    assert cells(_model(trade_off={}), 0)[1:6] == [
        "Model&#x27;s own",
        "Threshold",
        "40%",
        "Sensitivity",
        "95%",
    ]
    assert cells(_model(trade_off={}, operating_point={}), 0) == []


def test_the_band_is_explained_with_its_error_limits_at_the_models_threshold_only():
    text = band_sentence(_model(), 0.4)
    assert text.startswith("Uncertain range 20% to 60%: in validation")
    assert "at most 2% of pneumonias" in text and "at most 2% of normal images" in text
    # In the odds: 1/9 for 0.1 instead of 2/3, a sixth. 0.25 / 6 = 1/24 -> 4%, 1.5 / 6 = 1/4 -> 20%.
    moved = band_sentence(_model(), 0.1)
    assert moved.startswith("Uncertain range 4% to 20%: it moves") and " 2%" not in moved
    assert band_sentence(_model(band=None), 0.4) == ""
    without_risk = POINT | {"uncertain": {"low": 0.2, "high": 0.6}}
    assert band_sentence(_model(operating_point=without_risk), 0.4) == ""
