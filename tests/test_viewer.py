"""The viewer: its pictures decoded and laid together again, and its controls in a real browser."""

import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from browser import LAPTOP, PHONE, served
from PIL import Image

from hf_pneumonia.evaluation.plots import OPAQUE
from hf_pneumonia.inference.batch import overlay
from hf_pneumonia.page.viewer import viewer, viewer_value


def film(width: int, height: int) -> Image.Image:
    """Smooth, so that a JPEG is close to it."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    return Image.fromarray((127 + 90 * np.sin(x + y) * np.cos(x - y)).astype(np.uint8))


def heat(side: int = 32) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    return np.exp(-8 * ((x - 0.4) ** 2 + (y + 0.2) ** 2)).astype(np.float32)


def picture(file: dict) -> Image.Image:
    """Of a file that Gradio would send."""
    assert file["meta"] == {"_type": "gradio.FileData"}
    return Image.open(file["path"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2000, 1000), (1024, 512)), ((90, 70), (90, 70)), ((1, 5000), (1, 1024))],
)
def test_a_film_goes_as_a_gray_jpeg_of_at_most_1024_pixels_and_is_never_enlarged(size, expected):
    value = viewer_value(film(*size), None)
    sent = picture(value["film"])
    assert (sent.format, sent.mode, sent.size) == ("JPEG", "L", expected)
    assert (value["width"], value["height"]) == expected


def test_film_and_layer_laid_together_are_the_overlay_of_the_heat_map():
    given = film(640, 400)
    value = viewer_value(given, heat())
    layer = picture(value["heat"]).resize(given.size, Image.Resampling.BICUBIC)
    layer.putalpha(layer.getchannel("A").point([round(OPAQUE * level) for level in range(256)]))
    laid = Image.alpha_composite(picture(value["film"]).convert("RGBA"), layer).convert("RGB")
    difference = np.abs(np.asarray(laid, float) - np.asarray(overlay(given, heat()), float))
    assert difference.mean() < 1 and difference.max() < 12


def test_what_a_file_said_beside_its_pixels_is_not_sent_on():
    given = film(90, 70)
    given.info = {"comment": b"DOE^JANE", "exif": b"Exif\0\0DOE^JANE", "icc_profile": b"DOE"}
    data = Path(viewer_value(given, None)["film"]["path"]).read_bytes()
    assert b"DOE" not in data and given.info["comment"] == b"DOE^JANE"


VALUES = {
    "mapped": viewer_value(film(640, 480), heat()),
    "plain": viewer_value(film(640, 480), None, "<b>no</b> ${map} {{here}}"),
    "strip": viewer_value(film(40, 900), heat()),
    "nothing": None,
}


@pytest.fixture(scope="module")
def address(browser):
    with gr.Blocks() as page:
        shown = viewer()
        for name, value in VALUES.items():
            gr.Button(name).click(lambda value=value: value, None, shown, queue=False)
    with served(page) as at:
        yield at


@pytest.fixture
def tab(browser, address):
    tab = browser.new_page(viewport=LAPTOP)
    tab.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
    tab.goto(address)
    yield tab
    tab.close()


def near(numbers) -> object:
    """The browser gives six digits."""
    return pytest.approx(numbers, abs=1e-4)


def show(tab, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()
    tab.locator(".empty" if name == "nothing" else ".stage").wait_for()


def zoomed(tab) -> tuple[float, float, float]:
    """Scale and place of the sheets, which have to agree: scale, x and y in widths and heights of a pane."""
    (style,) = set(tab.locator(".sheet").evaluate_all("all => all.map(one => one.style.transform)"))
    x, y, scale = map(float, re.fullmatch(r"translate\((.+)%, (.+)%\) scale\((.+)\)", style).groups())
    assert tab.locator(".zoom output").inner_text() == f"{100 * scale:.0f}%"
    return scale, x / 100, y / 100


def test_without_a_film_there_is_a_placeholder_and_no_control(tab):
    tab.get_by_text("The film appears here.").wait_for()
    assert tab.locator(".viewer button:visible, .viewer input:visible").count() == 0
    show(tab, "mapped")
    assert not tab.locator(".empty").is_visible()
    show(tab, "nothing")
    assert tab.get_by_text("The film appears here.").is_visible()
    # Nothing of the last person stays in the page.
    assert "file=" not in tab.locator(".viewer").inner_html()
    show(tab, "plain")  # without a heat map
    tab.locator(".caption", has_text="<b>no</b> ${map} {{here}}").wait_for()
    assert tab.locator(".pane:visible").count() == 1 and tab.locator(".zoom").is_visible()
    assert not tab.get_by_role("slider", name="Heat map opacity").is_visible()


def test_opacity_follows_the_keyboard_and_lives_through_the_next_film(tab):
    show(tab, "mapped")
    slider, layer = tab.get_by_role("slider", name="Heat map opacity"), tab.locator(".heat")
    assert float(layer.evaluate("e => getComputedStyle(e).opacity")) == OPAQUE
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert float(layer.evaluate("e => getComputedStyle(e).opacity")) == pytest.approx(0.6)
    assert tab.locator(".opacity output").inner_text() == "60%"
    tab.keyboard.press("Home")
    assert float(layer.evaluate("e => getComputedStyle(e).opacity")) == 0
    show(tab, "strip")
    assert slider.input_value() == "0" and float(layer.evaluate("e => getComputedStyle(e).opacity")) == 0


def test_buttons_zoom_both_films_around_the_middle_and_reset_them(tab):
    show(tab, "mapped")
    assert zoomed(tab) == (1, 0, 0)
    tab.get_by_role("button", name="Zoom in").click()
    tab.get_by_role("button", name="Zoom in").click()
    # 1.25 twice is 1.5625; the middle stays where half of what is added is cut off on each side.
    assert zoomed(tab) == near((1.5625, -0.28125, -0.28125))
    tab.get_by_role("button", name="Zoom out").click()
    assert zoomed(tab) == near((1.25, -0.125, -0.125))
    tab.get_by_role("button", name="Reset zoom").click()
    assert zoomed(tab) == (1, 0, 0)
    for _ in range(12):
        tab.get_by_role("button", name="Zoom in").click()
    assert zoomed(tab)[0] == 8


def test_keys_zoom_move_and_reset_and_never_past_the_edge(tab):
    show(tab, "mapped")
    stage = tab.get_by_role("group", name="Film. Keys")
    stage.focus()
    for key in ("+", "=", "+"):
        tab.keyboard.press(key)
    assert zoomed(tab)[0] == near(1.25**3)
    scale, x, y = zoomed(tab)
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowUp")
    assert zoomed(tab) == near((scale, x - 0.1, y + 0.1))
    for _ in range(30):
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowDown")
    assert zoomed(tab) == near((scale, 0, 1 - scale))
    tab.keyboard.press("-")
    assert zoomed(tab)[0] == near(1.25**2)
    tab.keyboard.press("0")
    assert zoomed(tab) == (1, 0, 0)


def test_dragging_moves_both_films_with_the_pointer(tab):
    show(tab, "mapped")
    for _ in range(4):
        tab.get_by_role("button", name="Zoom in").click()
    scale, x, y = zoomed(tab)
    box = tab.locator(".original .pane").bounding_box()
    tab.mouse.move(box["x"] + 100, box["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 160, box["y"] + 70, steps=4)
    tab.mouse.up()
    assert zoomed(tab) == pytest.approx((scale, x + 60 / box["width"], y - 30 / box["height"]), abs=1e-3)
    tab.mouse.move(box["x"] + 10, box["y"] + 10)
    assert zoomed(tab) == pytest.approx((scale, x + 60 / box["width"], y - 30 / box["height"]), abs=1e-3)


def test_two_fingers_zoom_between_them(browser, address):
    tab = browser.new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    tab.goto(address)
    show(tab, "mapped")
    pane = tab.locator(".original .pane")
    pane.scroll_into_view_if_needed()
    box = pane.bounding_box()
    middle, height = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = tab.context.new_cdp_session(tab)

    def touch(kind: str, apart: float) -> None:
        places = [middle - apart / 2, middle + apart / 2] if apart else []
        points = [{"x": x, "y": height, "id": number} for number, x in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 60)
    for apart in (80, 100, 120):
        touch("touchMove", apart)
    touch("touchEnd", 0)
    tab.locator(".zoomed").wait_for()
    scale, x, _ = zoomed(tab)
    assert scale == pytest.approx(2, rel=0.02) and (0.5 - x) / scale == pytest.approx(0.5, abs=0.01)
    assert tab.evaluate("visualViewport.scale") == 1
    tab.close()


def test_on_a_phone_the_films_are_stacked_and_nothing_scrolls_sideways(tab):
    tab.set_viewport_size(PHONE)
    for name, panes in (("mapped", 2), ("plain", 1), ("strip", 2)):
        show(tab, name)
        tab.wait_for_function(f"document.querySelectorAll('.mapped:not([hidden])').length == {panes - 1}")
        assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        boxes = [pane.bounding_box() for pane in tab.locator(".pane:visible").all()]
        assert len(boxes) == panes and all(box["width"] > 250 and box["height"] > 100 for box in boxes)
        if panes == 2:
            assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"] and boxes[0]["x"] == boxes[1]["x"]
