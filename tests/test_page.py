"""The page as a person meets it: in a browser, through a real server."""

import base64
import io
import re
import threading
from html import unescape
from pathlib import Path

import pytest
from browser import LAPTOP, PHONE, served
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_pneumonia.data.film import read_film
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.prediction import FilmClassifier
from hf_pneumonia.page.answer import prediction_line
from hf_pneumonia.page.examples import SIMULATED, simulated_examples
from hf_pneumonia.page.one_film import short_html
from hf_pneumonia.page.page import NOTE, build_page, looks

WAIT = 20_000  # ms


@pytest.fixture
def classifier(page_server):
    return page_server.classifier


@pytest.fixture
def address(page_server) -> str:
    return page_server.address


@pytest.fixture
def tab(browser, address):
    """A fresh tab on the page; what goes wrong in it fails the test."""
    tab = browser.new_page(viewport=LAPTOP)
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    _open(tab, address)
    yield tab
    tab.close()
    assert not wrong


def _open(tab, address: str) -> None:
    tab.goto(address)
    tab.wait_for_selector("#film-file input[type=file]", state="attached", timeout=WAIT)


def _upload(tab, path: Path) -> None:
    tab.set_input_files("#film-file input[type=file]", str(path))


def _answer(tab, name: str) -> str:
    """The first line of the answer, once it is of the film of this name."""
    tab.wait_for_selector(f"#film-answer >> text=Film: {name}", timeout=WAIT)
    return tab.inner_text(".answer-line").strip()


def _line(classifier: FilmClassifier, film: object) -> str:
    prediction = classifier(film)
    return prediction_line(prediction.decision, prediction.probability)


def test_films_get_the_classifiers_answer_one_after_the_other(tab, classifier, film_folder, tmp_path):
    sick = next((film_folder / "test" / "PNEUMONIA").iterdir())
    # Gradio's upload leaves out of a path what a path may not hold, and not out of the film's own name.
    odd = tmp_path / "Ünï <b>ß<b> & &amp; ' film.jpeg"
    odd.write_bytes(next((film_folder / "test" / "NORMAL").iterdir()).read_bytes())
    for film in (sick, odd):
        _upload(tab, film)
        assert _answer(tab, film.name) == _line(classifier, film)
        heat = tab.locator("image.heat").get_attribute("href")
        assert tab.request.get(heat).headers["content-type"] == "image/png"
    assert not tab.locator("#film-answer b:has-text('ß')").count()


def test_a_photograph_is_refused_without_any_number_wherever_the_slider_is(tab, tmp_path):
    Image.fromarray(load_sample_images().images[1]).save(tmp_path / "flower.png")
    _upload(tab, tmp_path / "flower.png")
    assert _answer(tab, "flower.png") == "Not a chest film"
    said = tab.inner_text("#film-answer .answer-region")
    assert "a colour picture, and chest films are gray" in said and "%" not in said
    assert not tab.locator("image.heat[href]").count()
    tab.locator("#film-setting input[type=range]").focus()
    tab.keyboard.press("Home")
    tab.wait_for_selector("#film-found >> text=Against the model's own", timeout=WAIT)
    assert tab.inner_text("#film-answer .answer-region") == said


def test_an_example_is_taken_by_keyboard_and_said_to_be_simulated(tab, classifier):
    examples = simulated_examples()
    for number, key in ((0, "Enter"), (3, "Space")):
        button = tab.locator("[data-example]").nth(number)
        button.focus()
        outline = button.evaluate("button => getComputedStyle(button).outlineStyle")
        assert outline != "none"
        tab.keyboard.press(key)
        assert _answer(tab, examples[number].caption) == _line(classifier, examples[number].film)
        assert tab.locator(f"#film-answer >> text={SIMULATED}").count() == 1


def test_the_slider_changes_decision_and_sentence_by_keyboard_and_goes_back(tab, classifier):
    _example(tab, 0)
    card, found = "#film-answer .answer-region", "#film-found"
    before, own = tab.inner_text(card), tab.inner_text(found)
    slider = tab.locator("#film-setting input[type=range]")
    slider.focus()
    points = classifier.trade_off
    # The end that finds everything and clears nothing calls every film pneumonia, unless it is left open.
    for key, index in (("Home", 0), ("End", -1)):
        tab.keyboard.press(key)
        assert slider.get_attribute("aria-valuetext").startswith("Operating point ")
        words = _found(points["sensitivity"][index], points["specificity"][index])
        tab.wait_for_selector(f"{found} >> text={words}", timeout=WAIT)
        probability = classifier(simulated_examples()[0].film).probability
        decision = classifier.decide(probability, points["threshold"][index])
        line = prediction_line(decision, probability)
        tab.wait_for_function(
            "line => document.querySelector('.answer-line').innerText.trim() === line", arg=line, timeout=WAIT
        )
        assert "The operating point is moved to" in tab.inner_text(card)
    tab.keyboard.press("ArrowLeft")
    words = _found(points["sensitivity"][-2], points["specificity"][-2])
    tab.wait_for_selector(f"{found} >> text={words}", timeout=WAIT)
    tab.locator("#film-back").press("Enter")
    tab.wait_for_function("own => document.querySelector('#film-found').innerText === own", arg=own)
    assert tab.inner_text(card) == before
    assert slider.input_value() == str(points["threshold"].index(classifier.threshold))


def test_the_prevalence_moves_the_predictive_values_only(tab):
    # At this end there are false alarms, as many as there can be: all films are called pneumonia.
    tab.locator("#film-setting input[type=range]").focus()
    tab.keyboard.press("Home")
    tab.wait_for_selector("#film-found >> text=Against the model's own", timeout=WAIT)
    before = tab.inner_text("#film-found")
    tab.fill("#film-prevalence input", "0.5")
    words = "Where 5 of 1,000 films show pneumonia, fewer than 1 of 100 films called pneumonia show one"
    tab.wait_for_selector(f"#film-worth >> text={words}", timeout=WAIT)
    assert tab.inner_text("#film-found") == before
    tab.fill("#film-prevalence input", "100")
    tab.wait_for_selector("#film-worth >> text=enter a prevalence from 0.1 to 99.9", timeout=WAIT)


def test_a_broken_file_is_one_sentence_and_the_earlier_answer_is_gone(tab, tmp_path, capfd):
    _example(tab, 0)
    (tmp_path / "secret-name.png").write_bytes(b"<html>login</html>")
    _upload(tab, tmp_path / "secret-name.png")
    tab.wait_for_selector(
        "#film-answer >> text=This file can't be read as a film: an HTML page", timeout=WAIT
    )
    assert not tab.locator(".answer-line").count() and not tab.locator("image.film[href]").count()
    assert not tab.locator("text=Traceback").count()
    assert "Film: secret-name.png" in tab.inner_text("#film-answer")
    # The slider has nothing to decide, and the sentence stays.
    tab.locator("#film-setting input[type=range]").focus()
    tab.keyboard.press("Home")
    tab.wait_for_selector("#film-found >> text=Against the model's own", timeout=WAIT)
    assert tab.locator("#film-answer >> text=This file can't be read as a film").count() == 1
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "secret-name" not in printed.out + printed.err


def test_clear_leaves_the_page_as_new(tab):
    fresh = tab.inner_text("#one-film")
    _example(tab, 2)
    tab.locator("#film-setting input[type=range]").focus()
    tab.keyboard.press("End")
    tab.wait_for_selector("#film-answer >> text=The operating point is moved to", timeout=WAIT)
    tab.fill("#film-prevalence input", "50")
    tab.wait_for_selector("#film-worth >> text=Where 50 of 100", timeout=WAIT)
    tab.locator("#film-clear").press("Enter")
    tab.wait_for_function("fresh => document.querySelector('#one-film').innerText === fresh", arg=fresh)
    assert tab.input_value("#film-prevalence input") == "20"
    assert not tab.locator("image.film[href]").count()


@pytest.fixture
def slow(browser, classifier, tmp_path):
    """A tab, a film whose answer takes until the event is set, and a wait for that answer's arrival."""
    go_on = threading.Event()

    def read(path: str) -> Image.Image:
        assert go_on.wait(60)
        return read_film(path)

    simulated_examples()[3].film.save(tmp_path / "slow.png")
    page = build_page(classifier, read, simulated_examples())

    def arrive(tab) -> None:
        with tab.expect_response("**/run/predict", timeout=WAIT):  # of what follows an answer, late or not
            go_on.set()
        tab.wait_for_timeout(300)

    with served(page, max_file_size="200kb", **looks()) as address:
        tab = browser.new_page(viewport=LAPTOP)
        _open(tab, address)
        yield tab, tmp_path / "slow.png", arrive
        go_on.set()
        tab.close()


def test_the_last_choice_wins_over_a_slow_film_that_was_chosen_before_it(slow):
    tab, film, arrive = slow
    with tab.expect_response("**/queue/join*", timeout=WAIT):
        _upload(tab, film)
    _example(tab, 0)
    before = tab.inner_text("#film-answer")
    arrive(tab)
    assert tab.inner_text("#film-answer") == before and "slow.png" not in before


def test_clear_while_a_film_is_scored_leaves_nothing_of_it(slow):
    tab, film, arrive = slow
    fresh = tab.inner_text("#film-answer")
    with tab.expect_response("**/queue/join*", timeout=WAIT):
        _upload(tab, film)
    tab.locator("#film-clear").click()
    arrive(tab)
    assert tab.locator(".answer-empty").is_visible() and not tab.locator("image.film[href]").count()
    assert tab.inner_text("#film-answer .answer-region") in fresh
    _upload(tab, film)
    assert _answer(tab, "slow.png").startswith("Prediction")


def test_a_film_that_is_too_large_takes_the_earlier_answer_away(slow, tmp_path):
    tab, _, _ = slow
    _example(tab, 0)
    (tmp_path / "large.png").write_bytes(bytes(300_000))
    _upload(tab, tmp_path / "large.png")
    tab.wait_for_selector("text=exceed the maximum allowed size", timeout=WAIT)
    assert not tab.locator(".answer-line").is_visible() and not tab.locator("image.film[href]").count()
    _example(tab, 1)
    assert tab.locator(".answer-line").is_visible() and tab.locator("image.film").first.is_visible()


def test_on_a_phone_all_tabs_are_seen_and_the_answer_is_repeated_under_the_slider(
    browser, timm_folder, classifier
):
    page = build_page(classifier, read_film, simulated_examples(), str(timm_folder))
    with served(page, **looks()) as whole:
        tab = browser.new_page(viewport=PHONE)
        _open(tab, whole)
        tab.wait_for_timeout(500)
        for name in ("One film", "Many films", "About the model"):
            box = tab.get_by_role("tab", name=name).bounding_box()
            assert box and box["x"] + box["width"] <= PHONE["width"]
        assert not tab.locator(".overflow-menu").is_visible()
        _example(tab, 0)
        tab.locator("#film-setting input[type=range]").focus()
        tab.keyboard.press("End")
        tab.wait_for_selector("#film-found >> text=Against the model's own", timeout=WAIT)
        probability = classifier(simulated_examples()[0].film).probability
        line = short_html(classifier, {"probability": probability}, classifier.trade_off["threshold"][-1])
        assert tab.locator("#film-short").is_visible()
        assert tab.inner_text("#film-short p") == unescape(re.sub("<[^>]*>", "", line))
        tab.close()


def test_a_picture_is_pasted_anywhere_and_text_only_where_it_belongs(tab, classifier):
    film = simulated_examples()[3].film
    data = io.BytesIO()
    film.save(data, "PNG")
    tab.evaluate(
        """encoded => {
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            const clipboard = new DataTransfer();
            clipboard.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            const event = { clipboardData: clipboard, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new ClipboardEvent("paste", event));
        }""",
        base64.b64encode(data.getvalue()).decode(),
    )
    assert _answer(tab, "pasted.png") == _line(classifier, film)
    refused = tab.evaluate(
        """() => {
            const clipboard = new DataTransfer();
            clipboard.setData("text/plain", "20");
            const options = { clipboardData: clipboard, bubbles: true, cancelable: true };
            const event = new ClipboardEvent("paste", options);
            return !document.querySelector("#film-prevalence input").dispatchEvent(event);
        }"""
    )
    assert not refused


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_for_another_host_and_nothing_runs_out_at_the_side(browser, address, size, scheme):
    tab = browser.new_page(viewport=size, color_scheme=scheme)
    hosts = set()
    tab.on("request", lambda request: hosts.add(re.split("[/?]", request.url)[2] or request.url[:5]))
    _open(tab, address)
    _example(tab, 0)
    assert hosts <= {address.split("/")[2], "data:"}
    assert tab.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert tab.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    # The note stays where it is seen.
    tab.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    box = tab.locator("#no-device").bounding_box()
    assert tab.inner_text("#no-device").strip() == NOTE and 0 <= box["y"] < size["height"] / 2
    quiet = tab.evaluate(_CONTRAST)
    assert not quiet, quiet
    tab.close()


def test_a_model_that_states_nothing_has_no_slider_and_says_why(browser, vit_folder):
    page = build_page(PneumoniaClassifier.from_pretrained(vit_folder), read_film, simulated_examples())
    with served(page, **looks()) as address:
        tab = browser.new_page(viewport=LAPTOP)
        _open(tab, address)
        assert not tab.locator("#film-setting").count() and not tab.locator("#film-prevalence").count()
        assert "how often it is right is not known" in tab.inner_text("#film-found")
        assert "the model states no operating point" in tab.inner_text("#head")
        _example(tab, 0)
        assert not tab.locator("image.heat[href]").count()
        tab.close()


def _example(tab, number: int) -> None:
    caption = simulated_examples()[number].caption
    tab.locator("[data-example]").nth(number).click()
    tab.wait_for_selector(f"#film-answer >> text=Film: {caption}", timeout=WAIT)


def _found(sensitivity: float, specificity: float) -> str:
    # The shares of these ends are of 20 films: whole percents.
    return f"found {round(100 * sensitivity)} of 100 pneumonias and cleared {round(100 * specificity)} of 100"


# Texts whose contrast with what lies under them is below 4.5:1 (WCAG 2.2, 1.4.3; luminance as there).
_CONTRAST = """() => {
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
