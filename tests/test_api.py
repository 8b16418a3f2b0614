import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_inputs import DICOM, PNG

from hf_pneumonia.inference.prediction import NOT_A_FILM

ANSWER = {"prediction", "confidence", "decision", "label", "probability", "threshold", "reason"}


@pytest.fixture(scope="module")
def client(page_server) -> Client:
    return Client(page_server.address, verbose=False)


@pytest.fixture(scope="module")
def films(film_folder, tmp_path_factory) -> list[str]:
    """A JPEG, a PNG, a TIFF and a DICOM file."""
    folder = tmp_path_factory.mktemp("formats")
    jpeg = min((film_folder / "test").rglob("*.jpeg"))
    paths = [folder / name for name in ("film.png", "film.tif", "1.2.840")]
    for path in paths[:2]:
        Image.open(jpeg).save(path)
    paths[2].write_bytes(DICOM)
    return [str(path) for path in (jpeg, *paths)]


def test_films_are_answered_as_by_the_class(client, page_server, films):
    classifier = page_server.classifier
    answer = client.predict([handle_file(path) for path in films], api_name="/predict_batch")
    assert answer["model"] == classifier.name
    assert [film["file"] for film in answer["films"]] == [Path(path).name for path in films]
    for film, path in zip(answer["films"], films, strict=True):
        expected, alone = classifier(path), client.predict(handle_file(path), api_name="/predict")
        assert film.keys() == ANSWER | {"file", "error"} and film["error"] is None
        assert alone.keys() == ANSWER | {"model"}
        for found in (film, alone):
            assert (found["decision"], found["threshold"]) == (expected.decision, expected.threshold)
            if expected.decision != NOT_A_FILM:
                assert (found["label"], found["probability"]) == (expected.label, expected.probability)


def test_the_endpoints_are_two_and_say_what_they_take(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/predict", "/predict_batch"}
    taken = {name: endpoint["parameters"][0]["python_type"]["type"] for name, endpoint in named.items()}
    assert taken == {"/predict": "filepath", "/predict_batch": "list[filepath]"}
    assert all(f"\n{key}: " in named["/predict"]["description"] for key in ANSWER | {"model"})
    for name, endpoint in named.items():
        for said in (f'api_name="{name}"', "Not a medical device", "20 MB"):
            assert said in endpoint["description"]


def test_a_batch_with_bad_films_gives_a_row_each(client, page_server, tmp_path, films):
    (tmp_path / "page.jpg").write_text("<!doctype html><p>Log in")
    with zipfile.ZipFile(tmp_path / "ward.zip", "w") as archive:
        archive.writestr("../../evil.png", PNG)
        archive.writestr("<b>.png", Path(films[1]).read_bytes())
        archive.writestr("in.zip", b"")
    paths = [films[0], tmp_path / "page.jpg", tmp_path / "ward.zip"]
    answer = client.predict([handle_file(path) for path in paths], api_name="/predict_batch")
    assert {film["file"]: film["error"] for film in answer["films"]} == {
        Path(films[0]).name: None,
        "page.jpg": "an HTML page, not an image",
        "ward.zip/../../evil.png": None,
        "ward.zip/<b>.png": None,
        "ward.zip/in.zip": "a zip file in a zip file is not opened",
    }
    unread = answer["films"][1]
    empty = ("prediction", "confidence", "decision", "label", "probability")
    assert {unread[name] for name in empty} == {None} and unread["reason"] == ""
    expected = page_server.classifier(films[1]).probability
    assert answer["films"][3]["probability"] == pytest.approx(expected, abs=1e-6)
    assert sum(answer["counts"].values()) == 5 and answer["counts"]["could not be read"] == 2


def test_what_can_not_be_read_is_an_error_with_its_reason(client, tmp_path, capsys):
    (tmp_path / "page.jpg").write_text("<html><body>Log in")
    with pytest.raises(AppError, match="can't be read as a film: an HTML page, not an image"):
        client.predict(handle_file(tmp_path / "page.jpg"), api_name="/predict")
    assert capsys.readouterr().err == ""  # no traceback, and no name of a film


def test_what_is_no_chest_film_has_no_probability(client, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "cat.png")
    expected = {
        "prediction": "Not a chest film", "confidence": None, "decision": "not a chest film", "label": None,
        "probability": None, "threshold": 0.5, "reason": "a colour picture, and chest films are gray",
    }  # fmt: skip
    answer = client.predict(handle_file(tmp_path / "cat.png"), api_name="/predict")
    assert answer == {**expected, "model": "stub"}
    answer = client.predict([handle_file(tmp_path / "cat.png")], api_name="/predict_batch")
    assert answer["films"] == [{"file": "cat.png", **expected, "error": None}]
    assert answer["counts"]["not a chest film"] == 1
