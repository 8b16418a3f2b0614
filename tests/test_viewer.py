"""The viewer: its image and heat map composed again, and its controls in a real browser."""

import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from browser import LAPTOP
from PIL import Image

from hf_pneumonia.evaluation.plots import OPAQUE, overlay_heat_map
from hf_pneumonia.page.answer import viewer, viewer_value


def image(width: int, height: int) -> Image.Image:
    """A smooth image, which a JPEG approximates well."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    return Image.fromarray((127 + 90 * np.sin(x + y) * np.cos(x - y)).astype(np.uint8))


def heat(side: int = 32) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    return np.exp(-8 * ((x - 0.4) ** 2 + (y + 0.2) ** 2)).astype(np.float32)


@pytest.mark.parametrize("size", [(2000, 1000), (90, 70), (1, 5000)])
def test_an_image_is_sent_as_a_gray_jpeg_of_at_most_1024_pixels_and_is_never_enlarged(size):
    value, most = viewer_value(image(*size), None), max(1, max(size) / 1024)
    sent = Image.open(value["image"]["path"])
    assert (sent.format, sent.mode, sent.size) == ("JPEG", "L", (value["width"], value["height"]))
    assert sent.size == tuple(max(1, round(side / most)) for side in size)


def test_image_and_heat_map_layer_compose_to_the_overlay():
    given = image(640, 400)
    value = viewer_value(given, heat())
    layer = Image.open(value["heat"]["path"]).resize(given.size, Image.Resampling.BICUBIC)
    layer.putalpha(layer.getchannel("A").point([round(OPAQUE * level) for level in range(256)]))
    laid = Image.alpha_composite(Image.open(value["image"]["path"]).convert("RGBA"), layer).convert("RGB")
    difference = np.abs(np.asarray(laid, float) - np.asarray(overlay_heat_map(given, heat()), float))
    assert difference.mean() < 1 and difference.max() < 12


def test_metadata_of_a_file_is_not_sent():
    given = image(90, 70)
    given.info = {"comment": b"DOE^JANE", "exif": b"Exif\0\0DOE^JANE", "icc_profile": b"DOE"}
    data = Path(viewer_value(given, None)["image"]["path"]).read_bytes()
    assert b"DOE" not in data and given.info["comment"] == b"DOE^JANE"


VALUES = {
    "mapped": viewer_value(image(640, 480), heat()),
    "plain": viewer_value(image(640, 480), None, "<b>no</b> ${map} {{here}}"),
    "nothing": None,
}


@pytest.fixture(scope="module")
def address(browser):
    with gr.Blocks() as page:
        shown = viewer()
        for name, value in VALUES.items():
            gr.Button(name).click(lambda value=value: value, None, shown, queue=False)
    yield page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
    page.close()


@pytest.fixture
def tab(browser, address):
    tab = browser.new_page(viewport=LAPTOP)
    tab.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
    tab.goto(address)
    yield tab
    tab.close()


def near(numbers) -> object:
    """Equal to the browser's six digits."""
    return pytest.approx(numbers, abs=1e-4)


def show(tab, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()
    tab.locator(".empty" if name == "nothing" else ".stage").wait_for()


def zoomed(tab) -> tuple[float, float, float]:
    """Scale, x and y (in widths and heights of a pane) of the sheets, which must agree."""
    (style,) = set(tab.locator(".sheet").evaluate_all("all => all.map(one => one.style.transform)"))
    x, y, scale = map(float, re.fullmatch(r"translate\((.+)%, (.+)%\) scale\((.+)\)", style).groups())
    assert tab.locator(".zoom output").inner_text() == f"{100 * scale:.0f}%"
    return scale, x / 100, y / 100


def test_without_an_image_there_is_a_placeholder_and_no_control(tab):
    tab.get_by_text("The image appears here.").wait_for()
    assert tab.locator(".viewer button:visible, .viewer input:visible").count() == 0
    show(tab, "mapped")
    show(tab, "nothing")
    assert tab.get_by_text("The image appears here.").is_visible()
    # The last person's image is not kept in the page.
    assert "file=" not in tab.locator(".viewer").inner_html()
    show(tab, "plain")  # without a heat map
    tab.locator(".caption", has_text="<b>no</b> ${map} {{here}}").wait_for()
    assert tab.locator(".pane:visible").count() == 1
    assert not tab.get_by_role("slider", name="Heat map opacity").is_visible()


def test_buttons_keys_and_dragging_zoom_and_move_both_images_and_never_past_the_edge(tab):
    show(tab, "mapped")
    stage = tab.get_by_role("group", name="Image. Keys")
    tab.get_by_role("slider", name="Heat map opacity").press("ArrowLeft")
    assert float(tab.locator(".heat").evaluate("e => getComputedStyle(e).opacity")) == near(OPAQUE - 0.05)
    assert zoomed(tab) == (1, 0, 0)
    tab.get_by_role("button", name="Zoom in").click()
    stage.press("+")
    # 1.25 twice is 1.5625; the middle stays fixed, so half of the growth is cut off on each side.
    assert zoomed(tab) == near((1.5625, -0.28125, -0.28125))
    stage.press("ArrowRight")
    stage.press("ArrowUp")
    assert zoomed(tab) == near((1.5625, -0.38125, -0.18125))
    box = tab.locator(".original .pane").bounding_box()
    tab.mouse.move(box["x"] + 100, box["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 130, box["y"] + 80, steps=4)
    tab.mouse.up()
    tab.mouse.move(box["x"] + 10, box["y"] + 10)
    expected = (1.5625, -0.38125 + 30 / box["width"], -0.18125 - 20 / box["height"])
    assert zoomed(tab) == pytest.approx(expected, abs=1e-3)
    for _ in range(30):
        stage.press("ArrowLeft")
        stage.press("ArrowDown")
    assert zoomed(tab) == near((1.5625, 0, -0.5625))
    tab.get_by_role("button", name="Zoom out").click()
    assert zoomed(tab)[0] == near(1.25)
    tab.get_by_role("button", name="Reset zoom").click()
    assert zoomed(tab) == (1, 0, 0)
