import os
import zipfile
from pathlib import Path

import gradio as gr
import httpx
import pytest
from browser import served
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_inputs import DICOM, PNG

from hf_pneumonia.data.film import read_film
from hf_pneumonia.inference.classifier import NOT_A_FILM, PneumoniaClassifier, Prediction
from hf_pneumonia.page.api import add_endpoints

ANSWER = {"prediction", "confidence", "decision", "label", "probability", "threshold", "reason"}
META = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def classifier(finished_run) -> PneumoniaClassifier:
    return PneumoniaClassifier.from_pretrained(finished_run)


@pytest.fixture(scope="module")
def address(classifier):
    """Of a page with the endpoints and a control of its own."""
    with gr.Blocks(analytics_enabled=False) as page:
        text = gr.Textbox()
        text.change(lambda text: text, text, text, api_visibility="private")
        add_endpoints(classifier, read_film)
    with served(page, max_file_size="20mb") as address:
        yield address


@pytest.fixture(scope="module")
def client(address) -> Client:
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def hundred_films(film_folder, tmp_path_factory) -> list[str]:
    """The films of validation and test as JPEG, and the same as PNG, TIFF and BMP."""
    folder = tmp_path_factory.mktemp("formats")
    films = sorted([*(film_folder / "val").rglob("*.jpeg"), *(film_folder / "test").rglob("*.jpeg")])
    paths = list(films)
    for number, film in enumerate(films):
        paths.append(folder / f"{film.stem}{('.png', '.tif', '.bmp')[number % 3]}")
        Image.open(film).save(paths[-1])
    assert len(paths) == 100
    return [str(path) for path in paths]


def _ask(address: str, endpoint: str, data: object) -> str:
    """What the server says to a request that no client of Gradio would send."""
    called = httpx.post(f"{address}gradio_api/call/{endpoint}", json={"data": [data]}).raise_for_status()
    return httpx.get(f"{address}gradio_api/call/{endpoint}/{called.json()['event_id']}", timeout=60).text


def _assert_same_answers(client: Client, classifier: PneumoniaClassifier, paths: list[str]) -> None:
    answer = client.predict([handle_file(path) for path in paths], api_name="/predict_batch")
    assert answer["model"] == classifier.name
    assert [film["file"] for film in answer["films"]] == [Path(path).name for path in paths]
    for film, expected in zip(answer["films"], classifier(paths), strict=True):
        assert film.keys() == ANSWER | {"file", "error"} and film["error"] is None
        assert (film["decision"], film["label"]) == (expected.decision, expected.label)
        assert film["threshold"] == expected.threshold
        assert film["probability"] == pytest.approx(expected.probability, abs=1e-7)
    for path in paths[::10]:
        answer, expected = client.predict(handle_file(path), api_name="/predict"), classifier(path)
        assert answer["probability"] == expected.probability and answer["decision"] == expected.decision


def test_a_hundred_films_are_answered_as_by_the_class(client, classifier, hundred_films):
    _assert_same_answers(client, classifier, hundred_films)


@pytest.mark.skipif("CXR_DATA" not in os.environ, reason="CXR_DATA names no folder of real films")
def test_a_hundred_real_films_are_answered_as_by_the_class(client, classifier):
    films = sorted((Path(os.environ["CXR_DATA"]) / "kermany-full").rglob("*.jpeg"))
    _assert_same_answers(client, classifier, [str(path) for path in films[::3]])


def test_the_endpoints_are_two_and_say_what_they_take(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/predict", "/predict_batch"}
    taken = {name: endpoint["parameters"][0]["python_type"]["type"] for name, endpoint in named.items()}
    assert taken == {"/predict": "filepath", "/predict_batch": "list[filepath]"}
    assert all(f"\n{key}: " in named["/predict"]["description"] for key in ANSWER | {"model"})
    for name, endpoint in named.items():
        description = endpoint["description"]
        assert (
            f'api_name="{name}"' in description
            and "Not a medical device" in description
            and "20 MB" in description
        )


def test_a_dicom_film_is_a_film(client, classifier, tmp_path):
    (tmp_path / "1.2.840").write_bytes(DICOM)
    answer = client.predict(handle_file(tmp_path / "1.2.840"), api_name="/predict")
    assert answer.keys() == ANSWER | {"model"}
    # Noise in a DICOM file is no chest film, but is read.
    assert classifier(DICOM).decision == answer["decision"] == NOT_A_FILM and answer["probability"] is None
    assert answer["reason"] == classifier(DICOM).reason != ""


def test_a_batch_with_bad_films_gives_a_row_each(client, classifier, tmp_path, hundred_films):
    (tmp_path / "page.jpg").write_text("<!doctype html><p>Log in")
    with zipfile.ZipFile(tmp_path / "ward.zip", "w") as archive:
        archive.writestr("../../evil.png", PNG)
        archive.writestr("<b>.png", Path(hundred_films[50]).read_bytes())
        archive.writestr("in.zip", b"")
    paths = [hundred_films[0], tmp_path / "page.jpg", tmp_path / "ward.zip"]
    answer = client.predict([handle_file(path) for path in paths], api_name="/predict_batch")
    assert {film["file"]: film["error"] for film in answer["films"]} == {
        Path(hundred_films[0]).name: None,
        "page.jpg": "an HTML page, not an image",
        "ward.zip/../../evil.png": None,
        "ward.zip/<b>.png": None,
        "ward.zip/in.zip": "a zip file in a zip file is not opened",
    }
    unread = answer["films"][1]
    assert [unread[name] for name in ("prediction", "confidence", "decision", "label", "probability")] == [
        None
    ] * 5
    assert answer["films"][3]["probability"] == pytest.approx(
        classifier(hundred_films[50]).probability, abs=1e-6
    )
    assert sum(answer["counts"].values()) == 5 and answer["counts"]["could not be read"] == 2


def test_what_can_not_be_read_is_an_error_with_its_reason(client, tmp_path, capsys):
    (tmp_path / "page.jpg").write_text("<html><body>Log in")
    with pytest.raises(AppError, match="can't be read as a film: an HTML page, not an image"):
        client.predict(handle_file(tmp_path / "page.jpg"), api_name="/predict")
    assert capsys.readouterr().err == ""  # no traceback, and no name of a film


@pytest.mark.parametrize("endpoint", ["predict", "predict_batch"])
def test_no_file_of_the_server_is_read(address, endpoint, tmp_path):
    secret = tmp_path / "film.png"
    secret.write_bytes(PNG)
    for path in ("/etc/passwd", str(secret)):
        for file in ({"path": path, **META}, {"path": path}, {"path": path, "is_stream": True, **META}, path):
            for data in (file, [file]):
                said = _ask(address, endpoint, data)
                assert said.startswith("event: error") and "root:" not in said


def test_odd_requests_are_refused_and_the_next_one_is_served(client, address, hundred_films):
    for data in (None, 5, "", [], {}, [[]], [{"path": "a\0b"}], {"path": 5, **META}):
        assert "Traceback" not in _ask(address, "predict", data)
        assert "Traceback" not in _ask(address, "predict_batch", data)
    assert client.predict(handle_file(hundred_films[0]), api_name="/predict")["model"]


def test_what_is_no_chest_film_has_no_probability(tmp_path):
    class Refuses:
        name, threshold = "gate", 0.5

        def __call__(self, film, batch_size=None):
            refused = Prediction("PNEUMONIA", 0.9, 0.5, NOT_A_FILM, "a colour picture")
            return refused if batch_size is None else [refused for _ in film]

    Image.new("RGB", (9, 9), "red").save(tmp_path / "cat.png")
    with gr.Blocks(analytics_enabled=False) as page:
        add_endpoints(Refuses(), read_film)
    with served(page) as address:
        client = Client(address, verbose=False)
        expected = {
            "prediction": "Not a chest film", "confidence": None, "decision": "not a chest film",
            "label": None, "probability": None, "threshold": 0.5, "reason": "a colour picture",
        }  # fmt: skip
        answer = client.predict(handle_file(tmp_path / "cat.png"), api_name="/predict")
        assert answer == {**expected, "model": "gate"}
        answer = client.predict([handle_file(tmp_path / "cat.png")], api_name="/predict_batch")
        assert answer["films"] == [{"file": "cat.png", **expected, "error": None}]
        assert answer["counts"]["not a chest film"] == 1
