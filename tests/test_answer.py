"""Words and numbers of the answer card."""

import re
from html import unescape

import numpy as np
import pytest

from hf_pneumonia.inference.classifier import DECISIONS, NORMAL, NOT_A_CHEST_XRAY, PNEUMONIA, UNCERTAIN
from hf_pneumonia.page.answer import answer_html, percent, prediction_line


def text(html: str) -> str:
    """The visible text of some HTML."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def place(html: str, name: str, what: str) -> float:
    return float(re.search(rf'class="{name}" style="[^"]*\b{what}:([\d.]+)%', html)[1])


def test_the_first_line_states_class_and_confidence():
    assert prediction_line(PNEUMONIA, 0.967) == "Prediction: Pneumonia (Confidence: 96%)"
    assert prediction_line(NORMAL, 0.033) == "Prediction: Normal (Confidence: 96%)"
    assert prediction_line(UNCERTAIN, 0.6) == "Uncertain: needs review by a radiologist"
    assert (
        prediction_line(NOT_A_CHEST_XRAY, None)
        == prediction_line(NOT_A_CHEST_XRAY, 0.99)
        == "Not a chest X-ray"
    )
    for decision in DECISIONS:
        assert text(answer_html(0.42, 0.5, None, decision)).startswith(prediction_line(decision, 0.42))


def test_a_confidence_below_one_half_is_never_shown():
    at_this = "at this threshold (probability of pneumonia:"
    assert prediction_line(PNEUMONIA, 0.119) == f"Prediction: Pneumonia {at_this} 11%)"
    assert prediction_line(NORMAL, 0.73) == f"Prediction: Normal {at_this} 73%)"
    for decision in (PNEUMONIA, NORMAL):
        for probability in np.linspace(0, 1, 101):
            shown = re.search(r"Confidence: (?:> )?(\d+)%", prediction_line(decision, probability))
            assert (shown is None) == (abs(probability - (decision == PNEUMONIA)) > 0.5)
            assert shown is None or int(shown[1]) >= 50


def test_percents_are_floored_and_never_0_or_100():
    assert [percent(number) for number in (0.019, 0.5, 0.8999, 0.98999)] == ["1%", "50%", "89%", "98%"]
    # 0.29 as a float32, or 100 times, is a little less than 29.
    assert [percent(hundredth / 100) for hundredth in range(1, 100)] == [f"{n}%" for n in range(1, 100)]
    assert {percent(number) for number in (0.0, 1e-12, 0.00999)} == {"< 1%"}
    assert {percent(number) for number in (0.9901, 0.999, 1 - 1e-12, 1.0)} == {"> 99%"}


def test_value_threshold_and_band_are_at_their_numbers():
    html = answer_html(0.96, 0.8437, (0.234, 0.9), PNEUMONIA)
    assert place(html, "answer-fill", "width") == place(html, "answer-mark", "left") == 96
    assert place(html, "answer-tick", "left") == 84.37
    assert place(html, "answer-band", "left") == 23.4
    assert place(html, "answer-band", "width") == pytest.approx(66.6)
    assert "Uncertain range (needs review): 23% to 90%" in text(html) and "Threshold 84%" in text(html)
