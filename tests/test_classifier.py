import csv

import pytest

from hf_pneumonia.data.film import UnreadableFilm
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_a_film_gets_the_probability_that_the_run_reported_for_it(finished_run):
    classifier = PneumoniaClassifier.from_pretrained(str(finished_run))
    with open(finished_run / "predictions_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::7]:
        assert classifier(row["file"]) == pytest.approx(float(row["probability"]), abs=1e-5)
    assert 0 < classifier.threshold < 1


def test_a_damaged_film_is_refused(finished_run):
    with pytest.raises(UnreadableFilm):
        PneumoniaClassifier.from_pretrained(str(finished_run))(b"no film")


def test_a_model_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="--model expects a run folder"):
        PneumoniaClassifier.from_pretrained(str(tmp_path))
