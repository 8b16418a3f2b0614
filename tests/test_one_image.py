import base64
import io
import re

import numpy as np
import pytest
from conftest import zipped
from PIL import Image
from stub_page import StubClassifier

from hf_pneumonia.data.images import read_image
from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.errors import UnreadableImage
from hf_pneumonia.inference.classifier import NOT_A_CHEST_XRAY, NOT_ASSESSED, Prediction
from hf_pneumonia.page.answer import WORDS
from hf_pneumonia.page.one_image import (
    SIMULATED,
    Example,
    card_html,
    classify_image,
    gallery_html,
    read_upload,
    real_examples,
    simulated_examples,
)


@pytest.mark.parametrize("decision", [NOT_A_CHEST_XRAY, NOT_ASSESSED])
def test_the_card_of_a_refused_image_has_no_number_unless_an_answer_is_forced(decision):
    image, heat = Image.new("L", (90, 70)), np.ones((4, 4), np.float32)
    refused = Prediction("PNEUMONIA", 0.8125, 0.5, decision, "a colour picture", heat)
    answer, shown = classify_image(lambda image, heat_map: refused, image, "cat.png", heat_map=True)
    assert shown["heat"] is None
    # Its card is the same at every threshold.
    classifier = StubClassifier()
    (card,) = {card_html(classifier, answer, threshold) for threshold in (0.5, 0.1, 0.99)}
    assert f"{WORDS[decision]}: a colour picture" in card and "%" not in card
    forced = card_html(classifier, answer, 0.5, force=True)
    assert "Pneumonia" in forced and "81%" in forced and "Warning: a colour picture" in forced


def test_names_reasons_and_problems_are_escaped():
    evil = '<img src=x onerror="alert(1)">.png'
    plain = {"name": "image.jpeg", "note": "", "probability": 0.2, "reason": ""}
    for answer in (*({**plain, part: evil} for part in ("name", "note", "reason")), {"problem": evil}):
        card = card_html(StubClassifier(), answer, 0.5)
        assert "<img" not in card and "&lt;img" in card


def test_a_zip_file_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "images.png").write_bytes(zipped([("image.png", b"")]))
    with pytest.raises(UnreadableImage, match="zip file"):
        read_upload(read_image, str(tmp_path / "images.png"))


def test_the_simulated_examples_are_two_of_each_class_of_the_simulated_test_split(tmp_path):
    examples = simulated_examples()
    captions = [example.caption for example in examples]
    assert captions == 2 * ["Simulated, normal"] + 2 * ["Simulated, pneumonia"]
    assert all(example.image.mode == "L" and example.note == SIMULATED for example in examples)
    write_dataset(tmp_path / "phantoms", patients=12, size=64)
    tested = {int(re.search(r"\d+", path.stem)[0]) for path in (tmp_path / "phantoms/test").rglob("*.png")}
    held_out = [image.image for patient in tested for image in simulate_patient(patient)]
    for example in examples:
        assert any(np.array_equal(example.image, image) for image in held_out)


def test_a_models_examples_are_read_by_the_pages_decoder_and_a_damaged_one_is_skipped(tmp_path, caplog):
    folder, image = tmp_path / "examples", Image.new("L", (8, 8))
    (folder / "deep.png").mkdir(parents=True)
    for name in ("b.PNG", "a.jpeg", "c.dcm", "bad.png", ".hidden.png", "run.py"):
        (folder / name).write_bytes(b"x")
    asked = []

    def read(path):
        asked.append(path.rpartition("/")[2])
        if "bad" in path:
            raise UnreadableImage("not an image")
        return image

    found = real_examples(str(tmp_path), read)
    assert asked == ["a.jpeg", "b.PNG", "bad.png", "c.dcm"]
    assert [example.caption for example in found] == ["Example 1", "Example 2", "Example 3"]
    assert "not an image" in caplog.text and "bad" not in caplog.text
    for number in range(9):
        (folder / f"image-{number}.jpg").write_bytes(b"x")
    assert len(real_examples(str(tmp_path), lambda path: image)) == 8


def test_the_gallery_has_thumbnails_without_metadata_and_escaped_captions():
    image = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (400, 2)))
    image.info["comment"] = b"Anna"
    html = gallery_html([Example(image, '<b>"x"</b>', '" onclick="alert(1)')])
    assert "<b>" not in html and 'onclick="' not in html
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    with Image.open(io.BytesIO(data)) as thumbnail:
        assert thumbnail.size == (160, 125) and thumbnail.format == "JPEG"
    assert b"Anna" not in data and image.size == (512, 400) and image.info["comment"] == b"Anna"
