"""One film, one answer: every way to ask a model says the same of every film of the test split."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.data.film import read_film
from hf_pneumonia.page.one_film import card_html, look_at

# Whole batches and single films go through other kernels of the same library.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(request) -> Path:
    """`finished_run`; HF_PNEUMONIA_RUN names another finished run whose films are still where they were."""
    named = os.environ.get("HF_PNEUMONIA_RUN")
    return Path(named) if named else request.getfixturevalue("finished_run")


@pytest.fixture(scope="module")
def reported(model) -> dict[str, float]:
    """What the Trainer's own evaluation said of each test film."""
    with open(model / "predictions_test.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: float(row["probability"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def classifier(model) -> PneumoniaClassifier:
    return PneumoniaClassifier.from_pretrained(model)


def _assert_same(answers: list[float], reported: dict[str, float], threshold: float) -> None:
    expected = np.array(list(reported.values()))
    assert np.allclose(answers, expected, rtol=0, atol=TOLERANCE)
    assert ((np.array(answers) >= threshold) == (expected >= threshold)).all()


def test_the_class_one_by_one_and_in_batches(classifier, reported):
    single = [classifier(film) for film in reported]
    together = classifier(list(reported), batch_size=7)
    for predictions in (single, together):
        _assert_same([one.probability for one in predictions], reported, classifier.threshold)
    assert [one.decision for one in single] == [one.decision for one in together]


def test_the_command_predict(model, classifier, reported, tmp_path):
    output = tmp_path / "scores.csv"
    command = [sys.executable, "-m", "hf_pneumonia", "predict", "--model", model, "-", "--output", output]
    subprocess.run(command, input="\n".join(reported), text=True, check=True, cwd=ROOT, timeout=600)
    with open(output, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(reported)
    _assert_same([float(row["probability"]) for row in rows], reported, classifier.threshold)
    called = ["pneumonia" if value >= classifier.threshold else "normal" for value in reported.values()]
    assert [row["decision"] for row in rows] == called


def test_the_pipeline_of_transformers(model, classifier, reported):
    from transformers import pipeline

    answers = pipeline("image-classification", model=str(model), device="cpu")(list(reported))
    scores = [{one["label"]: one["score"] for one in answer}["PNEUMONIA"] for answer in answers]
    _assert_same(scores, reported, classifier.threshold)


def test_timm(model, classifier, reported):
    import timm
    import torch

    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        films = (transform(Image.open(film).convert("RGB"))[None] for film in reported)
        scores = [network(film).softmax(1)[0, 1].item() for film in films]
    _assert_same(scores, reported, classifier.threshold)


def test_the_page(classifier, reported):
    answers = [look_at(classifier, read_film(film), "film", heat_map=False)[0] for film in reported]
    _assert_same([said["probability"] for said in answers], reported, classifier.threshold)
    for said, probability in zip(answers, reported.values(), strict=True):
        card = card_html(classifier, said, classifier.threshold)
        assert f"Prediction: {classifier.decide(probability).capitalize()}" in card


def test_onnx(model, classifier, reported, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
    from test_export import run_onnx

    file = tmp_path / "model.onnx"
    command = [sys.executable, "-m", "hf_pneumonia", "export", "--model", model, "--output", file]
    subprocess.run(command, check=True, cwd=ROOT, timeout=600)
    _, answers = run_onnx(file, [Image.open(film) for film in reported])
    _assert_same(answers, reported, classifier.threshold)
