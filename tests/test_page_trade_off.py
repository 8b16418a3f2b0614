import re
from types import SimpleNamespace

import pytest

from hf_pneumonia.page.trade_off import (
    Setting,
    band_sentence,
    of_100,
    own_setting,
    predictive_sentence,
    settings_of,
)  # fmt: skip

POINTS = {"threshold": [0.1, 0.4, 0.8], "sensitivity": [1.0, 0.95, 0.6], "specificity": [0.25, 0.9, 1.0]}
POINT = {"threshold": 0.4, "sensitivity": 0.95, "specificity": 0.9}
POINT["uncertain"] = {"low": 0.2, "high": 0.6, "risk": 0.02}


def _model(trade_off=POINTS, operating_point=POINT, band=(0.2, 0.6)):
    return SimpleNamespace(trade_off=trade_off, operating_point=operating_point, band=band, threshold=0.4)


def test_the_slider_runs_over_the_models_points_and_starts_at_its_own():
    settings = settings_of(_model())
    assert settings == [Setting(0.1, 1, 0.25), Setting(0.4, 0.95, 0.9), Setting(0.8, 0.6, 1)]
    assert own_setting(settings, 0.4) == 1
    # A model that states only its operating point has that setting, and others have none.
    assert settings_of(_model(trade_off={})) == [Setting(0.4, 0.95, 0.9)]
    assert settings_of(_model(trade_off={}, operating_point={})) == []


def test_a_share_is_rounded_and_all_or_none_is_said_only_where_it_is_so():
    for share, count in ((0.947, 95), (0.994, 99), (0.006, 1), (0.0, 0), (1.0, 100)):
        assert of_100(share) == f"{count} of 100"
    assert {of_100(share) for share in (0.9951, 0.999999)} == {"more than 99 of 100"}
    assert of_100(0.004) == "fewer than 1 of 100"


def _shares(sentence: str) -> list[str]:
    return re.findall(r"(?:more than )?[\d,]+ of [\d,]+", sentence)


def test_predictive_values_are_those_of_a_table_of_1000_images():
    # Of 1,000 images 200 show pneumonia: 190 found, 10 missed, 80 of 800 called in vain, 720 cleared.
    # PPV 190 / 270 = 0.704, NPV 720 / 730 = 0.986.
    said = predictive_sentence(Setting(0.4, 0.95, 0.9), 20)
    assert _shares(said) == ["20 of 100", "70 of 100", "99 of 100"]
    # 5 of 1,000: 4.75 found, 99.5 in vain, 895.5 cleared, 0.25 missed. PPV 0.0456, NPV 0.9997.
    said = predictive_sentence(Setting(0.4, 0.95, 0.9), 0.5)
    assert _shares(said) == ["5 of 1,000", "5 of 100", "more than 99 of 100"]


def test_what_validation_saw_no_case_of_is_not_promised():
    # No false alarm in validation: 0 of 800 normal images in vain, which no hospital would see. Of 1,000 images
    # 100 found, 100 missed, 800 cleared: NPV 800 / 900 = 0.889.
    said = predictive_sentence(Setting(0.9, 0.5, 1), 20)
    assert _shares(said) == ["20 of 100", "89 of 100"] and "PPV can't be told" in said
    # None missed: 200 found, 400 of 800 in vain. PPV 200 / 600 = 0.333.
    said = predictive_sentence(Setting(0.1, 1, 0.5), 20)
    assert _shares(said) == ["20 of 100", "33 of 100"] and "NPV can't be told" in said
    for sensitivity in (0, 0.5, 1):
        for specificity in (0, 0.5, 1):
            said = predictive_sentence(Setting(0.5, sensitivity, specificity), 20)
            assert "100 of 100" not in said and " 0 of 100" not in said and "PPV" in said and "NPV" in said
    # Nothing is called normal, or pneumonia.
    assert "no image is called normal (NPV)" in predictive_sentence(Setting(0, 1, 0), 20)
    assert "no image is called pneumonia (PPV)" in predictive_sentence(Setting(1, 0, 1), 20)


@pytest.mark.parametrize("prevalence", [None, 0, 0.09, 99.95, -3, float("nan")])
def test_a_prevalence_that_is_none_is_asked_for_again(prevalence):
    said = predictive_sentence(Setting(0.4, 0.95, 0.9), prevalence)
    assert "enter a prevalence from 0.1 to 99.9" in said and _shares(said) == []


def test_the_band_is_explained_with_its_promise_at_the_models_own_point_only():
    sensitive, own, _ = settings_of(_model())
    said = band_sentence(_model(), own)
    assert said.startswith("Between 20% and 60% the answer is left open")
    assert "at most 2 of 100 pneumonias lie below it and at most 2 of 100 normal images above it" in said
    # In the odds: 1/9 for 0.1 instead of 2/3, a sixth. 0.25 / 6 = 1/24 -> 4%, 1.5 / 6 = 1/4 -> 20%.
    moved = band_sentence(_model(), sensitive)
    assert moved.startswith("Between 4% and 20% the answer is left open")
    assert "2 of 100" not in moved and "at the model's own operating point only" in moved
    assert band_sentence(_model(band=None), own) == ""
