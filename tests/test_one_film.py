import io
import json
import re
import zipfile
from html import unescape
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image
from stub_page import StubClassifier

from hf_pneumonia.data.film import read_film
from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.inference.prediction import NOT_A_FILM, Prediction
from hf_pneumonia.page.answer import prediction_line
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


def test_of_what_is_no_chest_film_no_probability_goes_to_the_browser(film):
    refused = Prediction(
        "PNEUMONIA", 0.8125, 0.5, NOT_A_FILM, "a colour picture", np.ones((4, 4), np.float32)
    )
    classifier = SimpleNamespace(threshold=0.5, band=(0.25, 0.75))
    said, shown = look_at(lambda film, heat_map: refused, film, "cat.png", heat_map=True)
    assert said["probability"] is None and "81" not in json.dumps(said) and shown["heat"] is None
    # Wherever the slider is, its card is the same.
    cards = {card_html(classifier, said, threshold) for threshold in (0.5, 0.1, 0.99)}
    assert len(cards) == 1 and "Not a chest film" in (card := cards.pop()) and "a colour picture" in card
    assert "%" not in card


def _said(probability: float, name: str = "film.jpeg", note: str = "") -> dict:
    return {"name": name, "note": note, "probability": probability, "reason": ""}


def test_another_setting_decides_anew_without_the_network(classifier):
    own = classifier.threshold
    asked = SimpleNamespace(threshold=own, band=classifier.band, decide=classifier.decide)
    for probability in (0.001, own, 0.999):
        for threshold in (own, 0.0001, 0.9999):
            moved = None if threshold == own else threshold
            decision = classifier.decide(probability, moved)
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
    with pytest.raises(UnreadableFilm, match='zip file: the tab "Many films" reads it'):
        read_upload(read_film, str(tmp_path / "films.png"))
    Image.new("L", (30, 20), 7).save(tmp_path / "film.zip", "PNG")
    assert read_upload(read_film, str(tmp_path / "film.zip")).size == (30, 20)


def test_the_pictures_of_an_answer_are_files_that_the_page_serves(page_server, film_folder):
    path = next((film_folder / "test" / "NORMAL").iterdir())
    api = f"{page_server.address}gradio_api"
    (stored,) = httpx.post(f"{api}/upload", files={"files": ("film.jpeg", path.read_bytes())}).json()
    of_file = next(fn for fn in page_server.page.fns.values() if fn.name == "from_file")
    film = {"path": stored, "orig_name": "film.jpeg", "meta": {"_type": "gradio.FileData"}}
    event = {"data": [film, 7], "fn_index": of_file._id, "session_hash": "of-this-test"}
    httpx.post(f"{api}/queue/join", json=event).raise_for_status()
    with httpx.stream("GET", f"{api}/queue/data?session_hash=of-this-test", timeout=60) as lines:
        messages = (json.loads(line[6:]) for line in lines.iter_lines() if line.startswith("data: "))
        done = next(message for message in messages if message["msg"] == "process_completed")
    (answer,) = done["output"]["data"]
    assert answer["choice"] == 7 and answer["said"]["name"] == "film.jpeg"
    assert answer["said"]["probability"] == page_server.classifier(path).probability
    for name, size in (("film", (90, 70)), ("heat", (64, 64))):
        picture = httpx.get(answer["view"][name]["url"])
        assert Image.open(io.BytesIO(picture.content)).size == size
