import csv

import numpy as np
import pytest
import torch

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.evaluation.scoring import Predictions, pneumonia_probability, predict_split, score_films
from hf_pneumonia.modeling.build import build_model, network_input


@pytest.fixture
def predictions():
    return Predictions(["a.png", "b, c.png"], ["p1", "p2"], np.array([1, 0]), np.array([0.875, 1 / 3]))


def test_films_are_scored_in_the_order_asked_for_whatever_the_batch_size(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    model = build_model("resnet10t", 64).train()
    rows = films.rows("test")[::-1]
    logits = score_films(model, films.store, rows, batch_size=7)
    with torch.no_grad():
        singly = [model.eval()(network_input(torch.from_numpy(films.store[[row]]))).logits[0] for row in rows]
    assert logits.shape == (30, 2) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, torch.stack(singly).numpy(), atol=1e-5)


def test_films_can_be_changed_before_they_are_scored(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    model, rows = build_model("resnet10t", 64), films.rows("test")
    logits = score_films(model, films.store, rows, 7, change=lambda films: 255 - films)
    with torch.no_grad():
        expected = model(network_input(torch.from_numpy(255 - films.store[rows]))).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_the_csv_gives_back_what_was_predicted(predictions, tmp_path):
    predictions.write_csv(tmp_path / "predictions.csv")
    with open(tmp_path / "predictions.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {"file": "a.png", "patient_id": "p1", "label": "PNEUMONIA", "probability": "0.875"}
    assert (second["file"], second["label"]) == ("b, c.png", "NORMAL")
    assert float(second["probability"]) == pytest.approx(1 / 3, abs=1e-8)


def test_the_probability_is_the_softmax_of_class_one():
    assert pneumonia_probability(np.array([[0.0, np.log(3.0)]])) == pytest.approx([0.75])


def test_the_predictions_of_a_split_are_its_films_in_their_order(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    model = build_model("resnet10t", 64)
    predictions = predict_split(model, films, "test", batch_size=16)
    assert predictions.file == films.file[films.rows("test")].tolist()
    with torch.no_grad():
        answers = model(network_input(torch.from_numpy(films.store[films.rows("test")]))).logits.softmax(1)
    np.testing.assert_allclose(predictions.probability, answers[:, 1], atol=1e-5)
