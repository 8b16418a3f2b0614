from pathlib import Path

import numpy as np
import pytest
from conftest import zipped
from gradio_client import Client, handle_file
from PIL import Image
from test_inputs import PNG

ANSWER = {"prediction", "confidence", "decision", "label", "probability", "threshold", "reason"}


@pytest.fixture(scope="module")
def client(page_server) -> Client:
    return Client(page_server.address, verbose=False)


@pytest.fixture(scope="module")
def image(image_folder) -> str:
    return str(min((image_folder / "test").rglob("*.jpeg")))


def test_the_answer_is_the_classifiers(client, page_server, image):
    expected, answer = page_server.classifier(image), client.predict(handle_file(image), api_name="/predict")
    assert answer.keys() == ANSWER | {"model"} and answer["model"] == "stub"
    for name in ("decision", "threshold", "label", "probability"):
        assert answer[name] == getattr(expected, name)


def test_there_are_two_endpoints_with_described_parameters(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    types = {name: endpoint["parameters"][0]["python_type"]["type"] for name, endpoint in named.items()}
    assert types == {"/predict": "filepath", "/predict_batch": "list[filepath]"}
    assert all(f"\n{key}: " in named["/predict"]["description"] for key in ANSWER | {"model"})
    assert all("Not a medical device" in endpoint["description"] for endpoint in named.values())


def test_a_batch_with_bad_images_gives_a_row_each(client, page_server, tmp_path, image):
    (tmp_path / "page.jpg").write_text("<!doctype html><p>Log in")
    members = [("../../evil.png", PNG), ("<b>.png", Path(image).read_bytes()), ("in.zip", b"")]
    (tmp_path / "ward.zip").write_bytes(zipped(members))
    paths = [image, tmp_path / "page.jpg", tmp_path / "ward.zip"]
    answer = client.predict([handle_file(path) for path in paths], api_name="/predict_batch")
    rows = {row["file"]: row for row in answer["films"]}
    assert {name: row["error"] for name, row in rows.items()} == {
        Path(image).name: None,
        "page.jpg": "an HTML page, not an image",
        "ward.zip/../../evil.png": None,
        "ward.zip/<b>.png": None,
        "ward.zip/in.zip": "zip files in zip files are not opened",
    }
    empty = dict.fromkeys(("prediction", "confidence", "decision", "label", "probability"))
    assert rows["page.jpg"].items() >= {**empty, "reason": ""}.items()
    expected = page_server.classifier(image).probability
    assert rows[Path(image).name]["probability"] == rows["ward.zip/<b>.png"]["probability"] == expected
    assert sum(answer["counts"].values()) == 5 and answer["counts"]["could not be read"] == 2


def test_a_refused_image_has_no_probability(client, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "cat.png")
    expected = {
        "prediction": "Not a chest X-ray", "confidence": None, "decision": "not a chest X-ray", "label": None,
        "probability": None, "threshold": 0.5,
    }  # fmt: skip
    answer = client.predict(handle_file(tmp_path / "cat.png"), api_name="/predict")
    assert answer.pop("reason") and answer == {**expected, "model": "stub"}
