"""The page in a browser, from a real server."""

import base64
import io
import re
from html import unescape
from pathlib import Path

import pytest
from browser import LAPTOP, PHONE
from conftest import until
from PIL import Image

from hf_pneumonia.data.images import read_image
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.answer import prediction_line
from hf_pneumonia.page.limits import MAX_FILE_BYTES
from hf_pneumonia.page.one_image import SIMULATED, short_html, simulated_examples
from hf_pneumonia.page.page import NOTE, build_page

WAIT = 20_000  # ms
SLIDER = "#image-setting input[type=range]"
METRICS = "#image-metrics table"
MOVED = "#image-metrics p:has-text('moves with the threshold')"


@pytest.fixture
def classifier(page_server):
    return page_server.classifier


@pytest.fixture
def tab(browser, page_server):
    """A fresh tab on the page; an error of a script fails the test."""
    tab = browser.new_page(viewport=LAPTOP)
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    _open(tab, page_server.address)
    yield tab
    tab.close()
    assert not errors


def _open(tab, address: str) -> None:
    tab.goto(address)
    tab.wait_for_selector("#image-file input[type=file]", state="attached", timeout=WAIT)


def _upload(tab, path: Path) -> None:
    tab.set_input_files("#image-file input[type=file]", str(path))


def _answer(tab, name: str) -> str:
    """The first line of the answer for the image of this name, once it is there."""
    tab.wait_for_selector(f"#image-answer >> text=Image: {name}", timeout=WAIT)
    return tab.inner_text(".answer-line").strip()


def _example(tab, number: int) -> None:
    tab.locator("[data-example]").nth(number).click()
    _answer(tab, simulated_examples()[number].caption)


def _slide(tab, key: str) -> None:
    """Move the slider to another threshold than the model's own."""
    tab.locator(SLIDER).focus()
    tab.keyboard.press(key)
    tab.locator(MOVED).wait_for(timeout=WAIT)


def _chosen(tab) -> list[str]:
    """Sensitivity, specificity, PPV and NPV at the chosen threshold."""
    return tab.locator(f"{METRICS} tbody td:nth-of-type(1)").all_inner_texts()[1:]


def _line(classifier, image: object) -> str:
    prediction = classifier(image)
    return prediction_line(prediction.decision, prediction.probability)


def test_images_get_the_classifiers_answer_one_after_the_other(tab, classifier, image_folder, tmp_path):
    pneumonia = next((image_folder / "test" / "PNEUMONIA").iterdir())
    # Gradio removes characters from the path of an upload, not from its original name.
    odd = tmp_path / "Ünï <b>ß<b> & &amp; ' image.jpeg"
    odd.write_bytes(next((image_folder / "test" / "NORMAL").iterdir()).read_bytes())
    for image in (pneumonia, odd):
        _upload(tab, image)
        assert _answer(tab, image.name) == _line(classifier, image)
        heat = tab.locator("image.heat").get_attribute("href")
        assert tab.request.get(heat).headers["content-type"] == "image/png"
    assert not tab.locator("#image-answer b:has-text('ß')").count()


def test_by_keyboard_an_example_is_chosen_and_the_slider_changes_decision_and_metrics(tab, classifier):
    example = simulated_examples()[0]
    tab.locator("[data-example]").first.press("Enter")
    assert _answer(tab, example.caption) == _line(classifier, example.image)
    assert tab.locator(f"#image-answer >> text={SIMULATED}").count() == 1
    card = "#image-answer .answer-region"
    before, own = tab.inner_text(card), tab.inner_text(METRICS)
    points = classifier.trade_off
    probability = classifier(example.image).probability
    for key, index in (("Home", 0), ("End", -1)):
        _slide(tab, key)
        expected = [f"{100 * points[name][index]:.0f}%" for name in ("sensitivity", "specificity")]
        assert until(lambda: _chosen(tab)[:2] == expected)  # noqa: B023
        line = prediction_line(classifier.decide(probability, points["threshold"][index]), probability)
        shown = "line => document.querySelector('.answer-line').innerText.trim() === line"
        tab.wait_for_function(shown, arg=line)
    tab.locator("#image-reset").press("Enter")
    tab.wait_for_function("own => document.querySelector('#image-metrics table').innerText === own", arg=own)
    assert tab.inner_text(card) == before
    assert tab.locator(SLIDER).input_value() == str(points["threshold"].index(classifier.threshold))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>login</html>", "Image: secret-name.png"),
        (bytes(MAX_FILE_BYTES + 1), "exceed the maximum allowed size"),
    ],
    ids=["broken", "too large"],
)
def test_a_file_that_is_refused_removes_the_earlier_answer(tab, tmp_path, capfd, data, message):
    _example(tab, 0)
    (tmp_path / "secret-name.png").write_bytes(data)
    _upload(tab, tmp_path / "secret-name.png")
    tab.wait_for_selector(f"text={message}", timeout=WAIT)
    assert not tab.locator(".answer-line").is_visible() and not tab.locator("image.image[href]").count()
    _example(tab, 1)
    assert tab.locator(".answer-line").is_visible()
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "secret-name" not in printed.out + printed.err


def test_the_prevalence_changes_ppv_and_npv_only_and_clear_resets_the_page(tab):
    fresh = tab.inner_text("#one-image")
    _example(tab, 2)
    _slide(tab, "ArrowRight")
    before = _chosen(tab)
    assert before == ["60%", "90%", "60%", "90%"]
    tab.fill("#image-prevalence input", "0.5")
    assert until(lambda: _chosen(tab) == ["60%", "90%", "3%", "> 99%"])
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
        with tab.expect_response("**/run/predict", timeout=WAIT):  # follows every answer, late or not
            classifier.white.set()
        tab.wait_for_timeout(300)
    finally:
        classifier.white.set()
    assert tab.inner_text("#image-answer .answer-region") == before and "slow.png" not in before
    assert (then == "clear") == (not tab.locator("image.image[href]").count())


def test_an_image_can_be_pasted_anywhere(tab, classifier):
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


def test_on_a_dark_phone_no_other_host_is_contacted_and_a_hostile_card_runs_nothing(
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
    # The disclaimer stays visible.
    tab.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    box = tab.locator("#disclaimer").bounding_box()
    assert tab.inner_text("#disclaimer").strip() == NOTE and 0 <= box["y"] < PHONE["height"] / 2
    tab.get_by_role("tab", name="About the model").click()
    tab.get_by_text("window.ran = 9").wait_for()  # shown, not evaluated
    assert tab.evaluate("window.ran") is None and tab.locator("a[href^=javascript]").count() == 0
    plot = tab.locator("img[src^='data:image/png']")
    assert plot.evaluate("image => image.complete && image.naturalWidth === 900 && image.alt.length > 10")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert hosts <= {page_server.address.split("/")[2], "data:"}
    tab.close()


def test_a_model_without_metrics_has_no_slider_and_a_reason(vit_folder):
    page = build_page(PneumoniaClassifier.from_pretrained(vit_folder), read_image, [], str(vit_folder))
    shown = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert not shown["image-setting"].visible and not shown["image-prevalence"].visible
    assert "states no validation metrics" in shown["image-metrics"].value
    assert "no operating point" in shown["head"].value
