"""The page as a person meets it: in a browser, through a real server."""

import base64
import io
import re
from html import unescape
from pathlib import Path

import gradio as gr
import pytest
from browser import LAPTOP, PHONE
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.prediction import NORMAL, NOT_A_FILM, PNEUMONIA, UNCERTAIN
from hf_pneumonia.page.answer import answer_html, prediction_line
from hf_pneumonia.page.examples import SIMULATED, simulated_examples
from hf_pneumonia.page.limits import MAX_FILE_BYTES
from hf_pneumonia.page.one_film import short_html
from hf_pneumonia.page.page import NOTE, build_page

WAIT = 20_000  # ms
SLIDER = "#film-setting input[type=range]"


@pytest.fixture
def classifier(page_server):
    return page_server.classifier


@pytest.fixture
def tab(browser, page_server):
    """A fresh tab on the page; what goes wrong in it fails the test."""
    tab = browser.new_page(viewport=LAPTOP)
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    _open(tab, page_server.address)
    yield tab
    tab.close()
    assert not wrong


def _open(tab, address: str) -> None:
    tab.goto(address)
    tab.wait_for_selector("#film-file input[type=file]", state="attached", timeout=WAIT)


def _upload(tab, path: Path) -> None:
    tab.set_input_files("#film-file input[type=file]", str(path))


def _answer(tab, name: str) -> str:
    """The first line of the answer, once it is of the image of this name."""
    tab.wait_for_selector(f"#film-answer >> text=Film: {name}", timeout=WAIT)
    return tab.inner_text(".answer-line").strip()


def _example(tab, number: int) -> None:
    tab.locator("[data-example]").nth(number).click()
    _answer(tab, simulated_examples()[number].caption)


def _slide(tab, key: str) -> None:
    """To another setting than the model's own."""
    tab.locator(SLIDER).focus()
    tab.keyboard.press(key)
    tab.wait_for_selector("#film-found >> text=Against the model's own", timeout=WAIT)


def _line(classifier, film: object) -> str:
    prediction = classifier(film)
    return prediction_line(prediction.decision, prediction.probability)


def test_films_get_the_classifiers_answer_one_after_the_other(tab, classifier, film_folder, tmp_path):
    region = tab.locator("[aria-live=polite].answer-region").element_handle()  # ahead of its content
    assert "The answer appears here." in region.inner_text()
    sick = next((film_folder / "test" / "PNEUMONIA").iterdir())
    # Gradio's upload leaves out of a path what a path may not hold, and not out of the film's own name.
    odd = tmp_path / "Ünï <b>ß<b> & &amp; ' film.jpeg"
    odd.write_bytes(next((film_folder / "test" / "NORMAL").iterdir()).read_bytes())
    for film in (sick, odd):
        _upload(tab, film)
        assert _answer(tab, film.name) == _line(classifier, film)
        heat = tab.locator("image.heat").get_attribute("href")
        assert tab.request.get(heat).headers["content-type"] == "image/png"
    assert "Prediction" in region.inner_text() and not tab.locator("#film-answer b:has-text('ß')").count()


def test_a_photograph_is_refused_without_any_number_wherever_the_slider_is(tab, tmp_path):
    Image.fromarray(load_sample_images().images[1]).save(tmp_path / "flower.png")
    _upload(tab, tmp_path / "flower.png")
    assert _answer(tab, "flower.png") == "Not a chest film"
    said = tab.inner_text("#film-answer .answer-region")
    assert "a colour picture, and chest films are gray" in said and "%" not in said
    assert not tab.locator("image.heat[href]").count()
    _slide(tab, "Home")
    assert tab.inner_text("#film-answer .answer-region") == said


def test_by_keyboard_an_example_is_taken_and_the_slider_changes_decision_and_sentence(tab, classifier):
    example = simulated_examples()[0]
    button = tab.locator("[data-example]").first
    button.focus()
    assert button.evaluate("button => getComputedStyle(button).outlineStyle") != "none"
    tab.keyboard.press("Enter")
    assert _answer(tab, example.caption) == _line(classifier, example.film)
    assert tab.locator(f"#film-answer >> text={SIMULATED}").count() == 1
    card, found = "#film-answer .answer-region", "#film-found"
    before, own = tab.inner_text(card), tab.inner_text(found)
    points, slider = classifier.trade_off, tab.locator(SLIDER)
    probability = classifier(example.film).probability
    for key, index in (("Home", 0), ("End", -1)):
        _slide(tab, key)
        assert slider.get_attribute("aria-valuetext").startswith("Operating point ")
        shares = [round(100 * points[name][index]) for name in ("sensitivity", "specificity")]
        words = "found {} of 100 pneumonias and cleared {} of 100".format(*shares)
        tab.wait_for_selector(f"{found} >> text={words}", timeout=WAIT)
        line = prediction_line(classifier.decide(probability, points["threshold"][index]), probability)
        tab.wait_for_function(
            "line => document.querySelector('.answer-line').innerText.trim() === line", arg=line, timeout=WAIT
        )
        assert "The operating point is moved to" in tab.inner_text(card)
    tab.locator("#film-back").press("Enter")
    tab.wait_for_function("own => document.querySelector('#film-found').innerText === own", arg=own)
    assert tab.inner_text(card) == before
    assert slider.input_value() == str(points["threshold"].index(classifier.threshold))


def test_a_broken_file_is_one_sentence_and_the_earlier_answer_is_gone(tab, tmp_path, capfd):
    _example(tab, 0)
    (tmp_path / "secret-name.png").write_bytes(b"<html>login</html>")
    _upload(tab, tmp_path / "secret-name.png")
    sentence = "#film-answer >> text=This file can't be read as a film: an HTML page"
    tab.wait_for_selector(sentence, timeout=WAIT)
    assert not tab.locator(".answer-line").count() and not tab.locator("image.film[href]").count()
    assert "Film: secret-name.png" in tab.inner_text("#film-answer")
    _slide(tab, "Home")  # there is nothing to decide, and the sentence stays
    assert tab.locator(sentence).count() == 1
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "secret-name" not in printed.out + printed.err


def test_the_prevalence_moves_its_own_sentence_and_clear_leaves_the_page_as_new(tab):
    fresh = tab.inner_text("#one-film")
    _example(tab, 2)
    _slide(tab, "End")
    found = tab.inner_text("#film-found")
    # The prevalence moves the predictive values only.
    for prevalence, words in (("100", "enter a prevalence from 0.1 to 99.9"), ("0.5", "Where 5 of 1,000")):
        tab.fill("#film-prevalence input", prevalence)
        tab.wait_for_selector(f"#film-worth >> text={words}", timeout=WAIT)
    assert tab.inner_text("#film-found") == found
    tab.locator("#film-clear").press("Enter")
    tab.wait_for_function("fresh => document.querySelector('#one-film').innerText === fresh", arg=fresh)
    assert tab.input_value("#film-prevalence input") == "20"
    assert not tab.locator("image.film[href]").count()


@pytest.fixture
def slow(tab, classifier, tmp_path):
    """Upload an image whose answer waits; returns a function that lets it arrive."""
    Image.new("L", (64, 64), 255).save(tmp_path / "slow.png")
    classifier.white.clear()
    with tab.expect_response("**/queue/join*", timeout=WAIT):
        _upload(tab, tmp_path / "slow.png")

    def arrive() -> None:
        with tab.expect_response("**/run/predict", timeout=WAIT):  # of what follows an answer, late or not
            classifier.white.set()
        tab.wait_for_timeout(300)

    yield arrive
    classifier.white.set()


def test_the_last_choice_wins_over_a_slow_film_that_was_chosen_before_it(tab, slow):
    _example(tab, 0)
    before = tab.inner_text("#film-answer")
    slow()
    assert tab.inner_text("#film-answer") == before and "slow.png" not in before


def test_clear_while_a_film_is_scored_leaves_nothing_of_it(tab, slow, tmp_path):
    tab.locator("#film-clear").click()
    slow()
    assert tab.locator(".answer-empty").is_visible() and not tab.locator("image.film[href]").count()
    _upload(tab, tmp_path / "slow.png")
    assert _answer(tab, "slow.png") == "Not a chest film"  # it is white all over


def test_a_film_that_is_too_large_takes_the_earlier_answer_away(tab, tmp_path):
    _example(tab, 0)
    (tmp_path / "large.png").write_bytes(bytes(MAX_FILE_BYTES + 1))
    _upload(tab, tmp_path / "large.png")
    tab.wait_for_selector("text=exceed the maximum allowed size", timeout=WAIT)
    assert not tab.locator(".answer-line").is_visible() and not tab.locator("image.film[href]").count()
    _example(tab, 1)
    assert tab.locator(".answer-line").is_visible() and tab.locator("image.film").first.is_visible()


def test_a_picture_is_pasted_anywhere_and_text_only_where_it_belongs(tab, classifier):
    film, data = simulated_examples()[3].film, io.BytesIO()
    film.save(data, "PNG")
    paste = """([place, encoded]) => {
        const clipboard = new DataTransfer();
        const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
        if (encoded) clipboard.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
        else clipboard.setData("text/plain", "20");
        const options = { clipboardData: clipboard, bubbles: true, cancelable: true };
        return document.querySelector(place).dispatchEvent(new ClipboardEvent("paste", options));
    }"""
    assert tab.evaluate(paste, ["#film-prevalence input", ""])  # not taken over by the page
    assert not tab.evaluate(paste, ["body", base64.b64encode(data.getvalue()).decode()])
    assert _answer(tab, "pasted.png") == _line(classifier, film)


def test_on_a_phone_all_tabs_are_seen_and_the_answer_is_repeated_under_the_slider(
    browser, page_server, classifier
):
    tab = browser.new_page(viewport=PHONE)
    _open(tab, page_server.address)
    _example(tab, 0)
    for name in ("One film", "Many films", "About the model"):
        box = tab.get_by_role("tab", name=name).bounding_box()
        assert box and box["x"] + box["width"] <= PHONE["width"]
    assert not tab.locator(".overflow-menu").is_visible()
    _slide(tab, "End")
    probability = classifier(simulated_examples()[0].film).probability
    line = short_html(classifier, {"probability": probability}, classifier.trade_off["threshold"][-1])
    assert tab.inner_text("#film-short p") == unescape(re.sub("<[^>]*>", "", line))
    tab.close()


CARDS = [
    answer_html(0.0, 0.0004, (0.00001, 0.02), UNCERTAIN),
    answer_html(1.0, 0.99999, (0.999, 0.99999), PNEUMONIA),
    answer_html(0.42, 0.31, (0.13, 0.85), UNCERTAIN),
    answer_html(0.03, 0.8437, (0.234, 0.8437), NORMAL),
    answer_html(None, 0.5, None, NOT_A_FILM, "a colour picture: ${alert(1)} <b>bold</b> {{value}} `"),
]


def test_on_the_smallest_phone_no_label_leaves_its_card_or_meets_another(tab):
    tab.set_viewport_size({"width": 340, "height": 900})
    card = tab.locator(".answer-region")
    for html in CARDS:
        card.evaluate("(region, html) => { region.innerHTML = html; }", html)
        assert tab.evaluate("document.documentElement.scrollWidth") == 340
        edge = card.bounding_box()
        boxes = [label.bounding_box() for label in card.locator(".answer-scale span, .answer-scale b").all()]
        for number, a in enumerate(boxes):
            assert edge["x"] <= a["x"] and a["x"] + a["width"] <= edge["x"] + edge["width"]
            for b in boxes[:number]:
                apart = max(a["x"], b["x"]) >= min(a["x"] + a["width"], b["x"] + b["width"]) - 0.5
                assert apart or max(a["y"], b["y"]) >= min(a["y"] + a["height"], b["y"] + b["height"]) - 0.5


@pytest.mark.parametrize(
    ("size", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")], ids=["laptop, light", "phone, dark"]
)
def test_nothing_leaves_for_another_host_and_nothing_runs_out_at_the_side(browser, page_server, size, scheme):
    tab = browser.new_page(viewport=size, color_scheme=scheme)
    hosts, wrong = set(), []
    tab.on("request", lambda request: hosts.add(re.split("[/?]", request.url)[2] or request.url[:5]))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    _open(tab, page_server.address)
    _example(tab, 0)
    assert tab.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert tab.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    # The note stays where it is seen.
    tab.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    box = tab.locator("#no-device").bounding_box()
    assert tab.inner_text("#no-device").strip() == NOTE and 0 <= box["y"] < size["height"] / 2
    assert tab.evaluate(_FAINT) == []
    # The model's card is somebody else's text.
    tab.get_by_role("tab", name="About the model").click()
    tab.get_by_text("window.ran = 9").wait_for()  # shown, and not computed
    assert tab.evaluate("window.ran") is None and tab.locator("a[href^=javascript]").count() == 0
    plot = tab.locator("img[src^='data:image/png']")
    assert plot.evaluate("one => one.complete && one.naturalWidth === 900 && one.alt.length > 10")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert hosts <= {page_server.address.split("/")[2], "data:"} and not wrong
    tab.close()


def test_a_model_that_states_nothing_has_no_slider_and_says_why(vit_folder):
    page = build_page(PneumoniaClassifier.from_pretrained(vit_folder))
    shown = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert isinstance(shown["film-setting"], gr.Slider)
    assert not shown["film-setting"].visible and not shown["film-prevalence"].visible
    assert "how often it is right is not known" in shown["film-found"].value
    assert "the model states no operating point" in shown["head"].value


# Texts whose contrast with what lies under them is below 4.5:1 (WCAG 2.2, 1.4.3; luminance as there).
_FAINT = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const part = colour.slice(0, 3).map((byte) => byte / 255)
      .map((share) => (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4));
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const under = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const faint = new Set();
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const [one, other] = [light(rgba(getComputedStyle(element).color)), light(under(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) faint.add(`${ratio.toFixed(2)} ${texts.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return [...faint];
}"""
