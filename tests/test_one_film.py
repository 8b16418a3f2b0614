import base64
import io
import json
import re
import zipfile
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stub_page import StubClassifier

from hf_pneumonia.data.film import read_film
from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.inference.prediction import NOT_A_FILM, NOT_ASSESSED, Prediction
from hf_pneumonia.page.answer import WORDS, prediction_line
from hf_pneumonia.page.examples import SIMULATED, Example, gallery_html, real_examples, simulated_examples
from hf_pneumonia.page.one_film import card_html, look_at, read_upload


@pytest.fixture(scope="module")
def classifier() -> StubClassifier:
    return StubClassifier()


@pytest.fixture(scope="module")
def film(film_folder) -> Image.Image:
    return read_film(next((film_folder / "test" / "NORMAL").iterdir()))


def test_what_is_said_of_a_film_is_the_classifiers_answer_in_plain_values(classifier, film):
    said, shown = look_at(classifier, film, "film.jpeg", heat_map=True)
    assert json.loads(json.dumps(said)) == said
    assert said["probability"] == classifier(film).probability and said["name"] == "film.jpeg"
    assert shown["heat"] and (shown["width"], shown["height"]) == (90, 70)
    assert look_at(classifier, film, "film.jpeg", heat_map=False)[1]["heat"] is None


@pytest.mark.parametrize("decision", [NOT_A_FILM, NOT_ASSESSED])
def test_the_card_of_a_refused_image_has_no_number_unless_an_answer_is_forced(film, decision):
    heat = np.ones((4, 4), np.float32)
    refused = Prediction("PNEUMONIA", 0.8125, 0.5, decision, "a colour picture", heat)
    said, shown = look_at(lambda film, heat_map: refused, film, "cat.png", heat_map=True)
    assert shown["heat"] is None
    # Wherever the slider is, its card is the same.
    classifier = SimpleNamespace(threshold=0.5, band=(0.25, 0.75), decide=lambda *_: "pneumonia")
    (card,) = {card_html(classifier, said, threshold) for threshold in (0.5, 0.1, 0.99)}
    assert WORDS[decision] in card and "a colour picture" in card and "%" not in card
    forced = card_html(classifier, said, 0.5, force=True)
    assert "Pneumonia" in forced and "81%" in forced and "Warning: a colour picture" in forced


def _said(probability: float, name: str = "film.jpeg", note: str = "") -> dict:
    return {"name": name, "note": note, "probability": probability, "reason": ""}


def test_another_setting_decides_anew_without_the_network(classifier):
    own = classifier.threshold
    asked = SimpleNamespace(threshold=own, band=classifier.band, decide=classifier.decide)
    for probability in (0.001, own, 0.999):
        for threshold in (own, 0.0001, 0.9999):
            decision = classifier.decide(probability, None if threshold == own else threshold)
            card = card_html(asked, _said(probability), threshold)
            assert prediction_line(decision, probability) in unescape(re.sub("<[^>]*>", "", card))
            assert ("The operating point is moved to" in card) == (threshold != own)


def test_names_and_problems_are_text_and_no_markup(classifier):
    evil = '<img src=x onerror="alert(1)">.png'
    for said in (_said(0.2, name=evil), _said(0.2, note=evil), {"problem": evil}):
        card = card_html(classifier, said, classifier.threshold)
        assert "<img" not in card and "&lt;img" in card


def test_a_zip_file_is_sent_to_the_other_tab_whatever_its_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "films.png", "w") as archive:
        archive.writestr("film.png", b"")
    with pytest.raises(UnreadableFilm, match="zip file"):
        read_upload(read_film, str(tmp_path / "films.png"))
    Image.new("L", (30, 20), 7).save(tmp_path / "film.zip", "PNG")
    assert read_upload(read_film, str(tmp_path / "film.zip")).size == (30, 20)


def test_the_simulated_examples_are_two_of_each_class_of_the_simulated_test_split(tmp_path):
    examples = simulated_examples()
    captions = [example.caption for example in examples]
    assert captions == 2 * ["Simulated, normal"] + 2 * ["Simulated, pneumonia"]
    assert all(example.film.mode == "L" and example.note == SIMULATED for example in examples)
    write_dataset(tmp_path / "phantoms", patients=12, size=64, workers=1)
    tested = {int(re.search(r"\d+", path.stem)[0]) for path in (tmp_path / "phantoms/test").rglob("*.png")}
    held_out = [film.image for patient in tested for film in simulate_patient(patient)]
    for example in examples:
        assert any(np.array_equal(example.film, film) for film in held_out)


def test_a_models_examples_are_read_by_the_pages_own_decoder_and_a_damaged_one_is_left_out(tmp_path, caplog):
    folder, film = tmp_path / "examples", Image.new("L", (8, 8))
    (folder / "deep.png").mkdir(parents=True)
    for name in ("b.PNG", "a.jpeg", "c.dcm", "bad.png", ".hidden.png", "run.py", "notes.txt"):
        (folder / name).write_bytes(b"x")
    asked = []

    def read(path):
        asked.append(path.rpartition("/")[2])
        if "bad" in path:
            raise UnreadableFilm("not an image")
        return film

    found = real_examples(str(tmp_path), read)
    assert asked == ["a.jpeg", "b.PNG", "bad.png", "c.dcm"]
    assert [example.caption for example in found] == ["Example 1", "Example 2", "Example 3"]
    assert "not an image" in caplog.text and "bad" not in caplog.text
    for number in range(9):
        (folder / f"image-{number}.jpg").write_bytes(b"x")
    assert len(real_examples(str(tmp_path), lambda path: film)) == 8
    assert real_examples(str(tmp_path / "none"), read) == []


def test_the_gallery_has_a_button_with_a_small_picture_for_each_and_names_are_no_markup():
    film = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (400, 2)))
    film.info["comment"] = b"Anna"
    html = gallery_html([Example(film, '<b>"x"</b>', '" onclick="alert(1)')])
    assert html.count("<button") == 1 and "<b>" not in html and 'onclick="' not in html
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    with Image.open(io.BytesIO(data)) as thumbnail:
        assert thumbnail.size == (160, 125) and thumbnail.format == "JPEG"
    assert b"Anna" not in data and film.size == (512, 400) and film.info["comment"] == b"Anna"
