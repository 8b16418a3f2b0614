"""The answer card: its words and numbers as plain text, and its places in a real browser."""

import re
from html import unescape

import gradio as gr
import numpy as np
import pytest
from browser import served

from hf_pneumonia.inference.prediction import DECISIONS, NORMAL, NOT_A_FILM, PNEUMONIA, UNCERTAIN
from hf_pneumonia.page.answer import answer_html, answer_panel, prediction_line
from hf_pneumonia.page.wording import percent


def text(html: str) -> str:
    """What a reader sees of it."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def place(html: str, name: str, what: str) -> float:
    return float(re.search(rf'class="{name}" style="[^"]*\b{what}:([\d.]+)%', html)[1])


def test_the_first_line_is_in_the_fields_words():
    assert prediction_line(PNEUMONIA, 0.967) == "Prediction: Pneumonia (Confidence: 96%)"
    assert prediction_line(NORMAL, 0.033) == "Prediction: Normal (Confidence: 96%)"
    assert prediction_line(UNCERTAIN, 0.6) == "Prediction: Uncertain - have it read"
    assert prediction_line(NOT_A_FILM, None) == prediction_line(NOT_A_FILM, 0.99) == "Not a chest film"
    for decision in DECISIONS:
        line = prediction_line(decision, 0.42)
        assert text(answer_html(0.42, 0.5, None, decision)).startswith(line)


def test_no_confidence_below_a_half_is_said_of_the_class_that_an_operating_point_names():
    at_this = "at this operating point (probability of pneumonia:"
    assert prediction_line(PNEUMONIA, 0.119) == f"Prediction: Pneumonia {at_this} 11%)"
    assert prediction_line(NORMAL, 0.73) == f"Prediction: Normal {at_this} 73%)"
    assert prediction_line(PNEUMONIA, 0.499) == f"Prediction: Pneumonia {at_this} 49%)"
    for decision in (PNEUMONIA, NORMAL):
        assert prediction_line(decision, 0.5).endswith("(Confidence: 50%)")
        for probability in np.linspace(0, 1, 101):
            said = re.search(r"Confidence: (?:> )?(\d+)%", prediction_line(decision, probability))
            assert (said is None) == (abs(probability - (decision == PNEUMONIA)) > 0.5)
            assert said is None or int(said[1]) >= 50


def test_percents_are_floored_and_nothing_is_said_to_be_sure():
    assert [percent(number) for number in (0.019, 0.5, 0.8999, 0.98999)] == ["1%", "50%", "89%", "98%"]
    assert {percent(number) for number in (0.0, 1e-12, 0.00999)} == {"< 1%"}
    assert {percent(number) for number in (0.9901, 0.999, 1 - 1e-12, 1.0)} == {"> 99%"}
    for number in (0.0, 1.0):
        for decision in (PNEUMONIA, NORMAL):
            assert not re.search(r"\b(0|100)%", prediction_line(decision, number))


def test_value_tick_and_band_stand_where_their_numbers_say():
    html = answer_html(0.96, 0.8437, (0.234, 0.9), PNEUMONIA)
    assert place(html, "answer-fill", "width") == place(html, "answer-mark", "left") == 96
    assert place(html, "answer-tick", "left") == 84.37
    assert place(html, "answer-band", "left") == 23.4
    assert place(html, "answer-band", "width") == pytest.approx(66.6)
    assert "Uncertain, have it read: 23% to 90%" in text(html) and "Operating point 84%" in text(html)
    assert (
        'role="img" aria-label="Probability of pneumonia 96%; operating point 84%; uncertain: 23% to 90%"'
        in html
    )


@pytest.mark.parametrize("probability", [None, 0.87])
def test_of_what_is_no_chest_film_there_is_a_reason_and_no_number(probability):
    html = answer_html(
        probability, 0.84, (0.2, 0.84), NOT_A_FILM, "a colour picture, and chest films are gray"
    )
    assert text(html).startswith("Not a chest film Reason: a colour picture, and chest films are gray")
    assert not re.search(r"\d", text(html)) and "style=" not in html and "aria-label" not in html


def test_a_reason_is_text_and_never_markup():
    reason = "<img src=x onerror=alert(1)>\" & ${alert(1)} {{value}} `'"
    html = answer_html(None, 0.5, None, NOT_A_FILM, reason)
    assert "<img" not in html and reason in text(html)


CARDS = [
    answer_html(0.0, 0.0004, (0.00001, 0.02), UNCERTAIN),
    answer_html(1.0, 0.99999, (0.999, 0.99999), PNEUMONIA),
    answer_html(0.5, 0.5, None, PNEUMONIA),
    answer_html(0.42, 0.31, (0.13, 0.85), UNCERTAIN),
    answer_html(0.03, 0.8437, (0.234, 0.8437), NORMAL),
    answer_html(None, 0.5, None, NOT_A_FILM, "a colour picture: ${alert(1)} <b>bold</b> {{value}} `"),
]


@pytest.fixture(scope="module")
def cards(browser):
    with gr.Blocks() as page:
        panels = [answer_panel() for _ in CARDS]
        page.load(lambda: CARDS, outputs=panels, queue=False)
    with served(page) as address:
        yield address


def shown(browser, address: str, **context):
    tab = browser.new_page(viewport={"width": 340, "height": 900}, **context)
    tab.goto(address)
    tab.wait_for_function(f"document.querySelectorAll('.answer').length == {len(CARDS)}")
    return tab


def test_on_the_smallest_phone_no_label_leaves_its_card_or_meets_another(browser, cards):
    tab = shown(browser, cards)
    assert tab.evaluate("document.documentElement.scrollWidth") == 340
    for card in tab.locator(".answer-region").all():
        edge = card.bounding_box()
        boxes = [label.bounding_box() for label in card.locator(".answer-scale span, .answer-scale b").all()]
        for box in boxes:
            assert edge["x"] <= box["x"] and box["x"] + box["width"] <= edge["x"] + edge["width"]
        for number, a in enumerate(boxes):
            for b in boxes[:number]:
                apart = max(a["x"], b["x"]) >= min(a["x"] + a["width"], b["x"] + b["width"]) - 0.5
                assert apart or max(a["y"], b["y"]) >= min(a["y"] + a["height"], b["y"] + b["height"]) - 0.5
    tab.close()


def test_the_region_is_there_ahead_of_its_answer_and_announces_it(browser):
    with gr.Blocks() as page:
        panel, button = answer_panel(), gr.Button("Answer")
        button.click(lambda: answer_html(0.96, 0.5, None, PNEUMONIA), None, panel, queue=False)
    with served(page) as address:
        tab = browser.new_page()
        tab.goto(address)
        tab.get_by_text("The answer appears here.").wait_for()
        region = tab.locator("[aria-live=polite].answer-region").element_handle()
        tab.get_by_role("button", name="Answer").click()
        tab.get_by_text("Prediction: Pneumonia (Confidence: 96%)").wait_for()
        assert region.is_visible() and "Prediction: Pneumonia" in region.inner_text()
        tab.close()
