"""All interfaces give the same predictions for every image of the test split."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_export import run_onnx
from transformers import pipeline

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.__main__ import main
from hf_pneumonia.data.images import read_image
from hf_pneumonia.page.answer import prediction_line
from hf_pneumonia.page.one_image import card_html, classify_image

# Batches and single images use different kernels.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reported(finished_run) -> dict[str, float]:
    """Probabilities of the test images from the Trainer's evaluation."""
    with open(finished_run / "predictions_test.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: float(row["probability"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def classifier(finished_run) -> PneumoniaClassifier:
    return PneumoniaClassifier.from_pretrained(finished_run)


def _assert_same(answers: list[float], reported: dict[str, float], threshold: float) -> None:
    expected = np.array(list(reported.values()))
    np.testing.assert_allclose(answers, expected, rtol=0, atol=TOLERANCE)
    assert ((np.array(answers) >= threshold) == (expected >= threshold)).all()


def test_the_class_one_by_one_and_in_batches(finished_run, classifier, reported):
    single = [classifier(image) for image in reported]
    together = classifier(list(reported), batch_size=7)
    for predictions in (single, together):
        _assert_same([one.probability for one in predictions], reported, classifier.threshold)
    decisions = [one.decision for one in single]
    assert decisions == [one.decision for one in together]
    stated = json.loads((finished_run / "config.json").read_text())["pneumonia"]
    assert classifier.threshold == stated["threshold"] and set(decisions) >= {"normal", "pneumonia"}


def test_the_command_predict(finished_run, classifier, reported, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(reported).encode())))
    main(["predict", "--model", str(finished_run), "-", "--output", str(tmp_path / "scores.csv")])
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(reported)
    _assert_same([float(row["probability"]) for row in rows], reported, classifier.threshold)
    assert [row["decision"] for row in rows] == [classifier.decide(value) for value in reported.values()]
    assert {float(row["threshold"]) for row in rows} == {classifier.threshold}


def test_the_pipeline_of_transformers(finished_run, classifier, reported):
    answers = pipeline("image-classification", model=str(finished_run), device="cpu")(list(reported))
    scores = [{one["label"]: one["score"] for one in answer}["PNEUMONIA"] for answer in answers]
    _assert_same(scores, reported, classifier.threshold)


def test_timm(finished_run, classifier, reported):
    network = timm.create_model(f"local-dir:{finished_run}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        images = (transform(Image.open(image).convert("RGB"))[None] for image in reported)
        scores = [network(image).softmax(1)[0, 1].item() for image in images]
    _assert_same(scores, reported, classifier.threshold)


def test_the_page(classifier, reported):
    answers = [
        classify_image(classifier, read_image(image), "image", heat_map=False)[0] for image in reported
    ]
    _assert_same([said["probability"] for said in answers], reported, classifier.threshold)
    for said, probability in zip(answers, reported.values(), strict=True):
        card = card_html(classifier, said, classifier.threshold)
        assert prediction_line(classifier.decide(probability), said["probability"]).partition(" (")[0] in card


def test_onnx(finished_run, classifier, reported, tmp_path, capsys):
    file = tmp_path / "new" / "model.onnx"
    main(["export", "--model", str(finished_run), "--output", str(file)])
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1] == f"export: {file}, {file}.json"
    _, answers = run_onnx(file, [Image.open(image) for image in reported])
    _assert_same(answers, reported, json.loads(Path(f"{file}.json").read_text())["threshold"])
