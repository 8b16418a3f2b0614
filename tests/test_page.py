"""The page as a person meets it: in a browser, through a real server."""

import base64
import io
import re
from html import unescape
from pathlib import Path

import pytest
from browser import LAPTOP, PHONE
from PIL import Image

from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.answer import prediction_line
from hf_pneumonia.page.limits import MAX_FILE_BYTES
from hf_pneumonia.page.one_image import SIMULATED, short_html, simulated_examples
from hf_pneumonia.page.page import NOTE, build_page

WAIT = 20_000  # ms
SLIDER = "#image-setting input[type=range]"


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
    tab.wait_for_selector("#image-file input[type=file]", state="attached", timeout=WAIT)


def _upload(tab, path: Path) -> None:
    tab.set_input_files("#image-file input[type=file]", str(path))


def _answer(tab, name: str) -> str:
    """The first line of the answer, once it is of the image of this name."""
    tab.wait_for_selector(f"#image-answer >> text=Image: {name}", timeout=WAIT)
    return tab.inner_text(".answer-line").strip()


def _example(tab, number: int) -> None:
    tab.locator("[data-example]").nth(number).click()
    _answer(tab, simulated_examples()[number].caption)


def _slide(tab, key: str) -> None:
    """To another setting than the model's own."""
    tab.locator(SLIDER).focus()
    tab.keyboard.press(key)
    tab.wait_for_selector("#image-found >> text=Against the model's own", timeout=WAIT)


def _line(classifier, image: object) -> str:
    prediction = classifier(image)
    return prediction_line(prediction.decision, prediction.probability)


def test_images_get_the_classifiers_answer_one_after_the_other(tab, classifier, image_folder, tmp_path):
    sick = next((image_folder / "test" / "PNEUMONIA").iterdir())
    # Gradio's upload leaves out of a path what a path may not hold, and not out of the image's own name.
    odd = tmp_path / "Ünï <b>ß<b> & &amp; ' image.jpeg"
    odd.write_bytes(next((image_folder / "test" / "NORMAL").iterdir()).read_bytes())
    for image in (sick, odd):
        _upload(tab, image)
        assert _answer(tab, image.name) == _line(classifier, image)
        heat = tab.locator("image.heat").get_attribute("href")
        assert tab.request.get(heat).headers["content-type"] == "image/png"
    assert not tab.locator("#image-answer b:has-text('ß')").count()


def test_by_keyboard_an_example_is_taken_and_the_slider_changes_decision_and_sentence(tab, classifier):
    example = simulated_examples()[0]
    tab.locator("[data-example]").first.press("Enter")
    assert _answer(tab, example.caption) == _line(classifier, example.image)
    assert tab.locator(f"#image-answer >> text={SIMULATED}").count() == 1
    card, found = "#image-answer .answer-region", "#image-found"
    before, own = tab.inner_text(card), tab.inner_text(found)
    points = classifier.trade_off
    probability = classifier(example.image).probability
    for key, index in (("Home", 0), ("End", -1)):
        _slide(tab, key)
        shares = [round(100 * points[name][index]) for name in ("sensitivity", "specificity")]
        words = "found {} of 100 pneumonias and cleared {} of 100".format(*shares)
        tab.wait_for_selector(f"{found} >> text={words}", timeout=WAIT)
        line = prediction_line(classifier.decide(probability, points["threshold"][index]), probability)
        shown = "line => document.querySelector('.answer-line').innerText.trim() === line"
        tab.wait_for_function(shown, arg=line)
    tab.locator("#image-back").press("Enter")
    tab.wait_for_function("own => document.querySelector('#image-found').innerText === own", arg=own)
    assert tab.inner_text(card) == before
    assert tab.locator(SLIDER).input_value() == str(points["threshold"].index(classifier.threshold))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<html>login</html>", "Image: secret-name.png"),
        (bytes(MAX_FILE_BYTES + 1), "exceed the maximum allowed size"),
    ],
    ids=["broken", "too large"],
)
def test_with_a_file_that_is_refused_the_earlier_answer_is_gone(tab, tmp_path, capfd, data, said):
    _example(tab, 0)
    (tmp_path / "secret-name.png").write_bytes(data)
    _upload(tab, tmp_path / "secret-name.png")
    tab.wait_for_selector(f"text={said}", timeout=WAIT)
    assert not tab.locator(".answer-line").is_visible() and not tab.locator("image.image[href]").count()
    _example(tab, 1)
    assert tab.locator(".answer-line").is_visible()
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "secret-name" not in printed.out + printed.err


def test_the_prevalence_moves_its_own_sentence_and_clear_leaves_the_page_as_new(tab):
    fresh = tab.inner_text("#one-image")
    _example(tab, 2)
    _slide(tab, "End")
    found = tab.inner_text("#image-found")
    # The prevalence moves the predictive values only.
    tab.fill("#image-prevalence input", "0.5")
    tab.wait_for_selector("#image-worth >> text=Where 5 of 1,000", timeout=WAIT)
    assert tab.inner_text("#image-found") == found
    tab.locator("#image-clear").press("Enter")
    tab.wait_for_function("fresh => document.querySelector('#one-image').innerText === fresh", arg=fresh)
    assert tab.input_value("#image-prevalence input") == "20"
    assert not tab.locator("image.image[href]").count()


@pytest.mark.parametrize("then", ["an example", "clear"])
def test_a_slow_image_gives_no_answer_after_another_choice(tab, classifier, tmp_path, then):
    Image.new("L", (64, 64), 255).save(tmp_path / "slow.png")
    classifier.white.clear()
    try:
        with tab.expect_response("**/queue/join*", timeout=WAIT):
            _upload(tab, tmp_path / "slow.png")
        if then == "clear":
            tab.locator("#image-clear").click()
            tab.locator(".answer-empty").wait_for()
        else:
            _example(tab, 0)
        before = tab.inner_text("#image-answer .answer-region")
        with tab.expect_response("**/run/predict", timeout=WAIT):  # of what follows an answer, late or not
            classifier.white.set()
        tab.wait_for_timeout(300)
    finally:
        classifier.white.set()
    assert tab.inner_text("#image-answer .answer-region") == before and "slow.png" not in before
    assert (then == "clear") == (not tab.locator("image.image[href]").count())


def test_a_picture_can_be_pasted_anywhere(tab, classifier):
    image, data = simulated_examples()[3].image, io.BytesIO()
    image.save(data, "PNG")
    paste = """(encoded) => {
        const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
        document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
    }"""
    tab.evaluate(paste, base64.b64encode(data.getvalue()).decode())
    assert _answer(tab, "pasted.png") == _line(classifier, image)


def test_on_a_dark_phone_nothing_is_asked_of_another_host_and_nothing_of_the_models_card_runs(
    browser, page_server, classifier
):
    tab = browser.new_page(viewport=PHONE, color_scheme="dark")
    hosts = set()
    tab.on("request", lambda request: hosts.add(re.split("[/?]", request.url)[2] or request.url[:5]))
    _open(tab, page_server.address)
    _example(tab, 0)
    _slide(tab, "End")
    probability = classifier(simulated_examples()[0].image).probability
    line = short_html(classifier, {"probability": probability}, classifier.trade_off["threshold"][-1])
    assert tab.inner_text("#image-short p") == unescape(re.sub("<[^>]*>", "", line))
    assert tab.evaluate("document.body.classList.contains('dark')")
    # The note stays where it is seen.
    tab.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    box = tab.locator("#no-device").bounding_box()
    assert tab.inner_text("#no-device").strip() == NOTE and 0 <= box["y"] < PHONE["height"] / 2
    tab.get_by_role("tab", name="About the model").click()
    tab.get_by_text("window.ran = 9").wait_for()  # shown, and not computed
    assert tab.evaluate("window.ran") is None and tab.locator("a[href^=javascript]").count() == 0
    plot = tab.locator("img[src^='data:image/png']")
    assert plot.evaluate("one => one.complete && one.naturalWidth === 900 && one.alt.length > 10")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert hosts <= {page_server.address.split("/")[2], "data:"}
    tab.close()


def test_a_model_that_states_nothing_has_no_slider_and_says_why(vit_folder):
    page = build_page(PneumoniaClassifier.from_pretrained(vit_folder))
    shown = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert not shown["image-setting"].visible and not shown["image-prevalence"].visible
    assert "how often it is right is not known" in shown["image-found"].value
    assert "the model states no operating point" in shown["head"].value
