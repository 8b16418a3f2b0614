import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.evaluation import robustness
from hf_pneumonia.evaluation.corruptions import exposure
from hf_pneumonia.evaluation.figures import auroc, sensitivity, specificity
from hf_pneumonia.evaluation.robustness import CORRUPTIONS, check_robustness, draw_evenly
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films


class Brightness(nn.Module):
    """The brighter a film, the more it has pneumonia."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        margin = self.slope * inputs.mean((1, 2, 3))
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(margin), margin], 1))


@pytest.fixture
def scored(film_folder, tmp_path):
    """Model, store, rows, label, probability and patients of the test films."""
    films, model = prepare_films(str(film_folder), 64, tmp_path), Brightness()
    rows = films.rows("test")
    probability = pneumonia_probability(score_films(model, films.store, rows, 8))
    return model, films.store, rows, films.label[rows], probability, films.patient[rows]


def test_each_level_has_the_figures_of_the_films_that_were_changed(scored):
    model, store, rows, label, probability, patient = scored
    threshold = float(np.median(probability))
    result = check_robustness(*scored, threshold, batch_size=8)
    assert result["films"] == 30 and list(result)[2:] == list(CORRUPTIONS)
    darker = result["exposure"]["levels"][-1]
    values = pneumonia_probability(score_films(model, store, rows, 8, lambda films: exposure(films, 2)))
    assert darker == {
        "level": 2,
        "auroc": auroc(label, values, patient),
        "sensitivity": sensitivity(label, values, patient, threshold),
        "specificity": specificity(label, values, patient, threshold),
    }
    assert darker["sensitivity"]["value"] == 0, "no dark film passes for a bright one"
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert check_robustness(*scored, threshold, batch_size=30) == result


def test_every_curve_rises_in_level_and_holds_the_films_as_they_are(scored):
    label, probability, patient = scored[3:]
    result = check_robustness(*scored, 0.5, batch_size=30)
    for name, (_, _, clean, levels) in CORRUPTIONS.items():
        found = {one["level"]: one for one in result[name]["levels"]}
        assert list(found) == sorted([clean, *levels]) and result[name]["clean"] == clean
        assert found[clean]["auroc"] == auroc(label, probability, patient)


@pytest.mark.filterwarnings("error")
def test_films_of_one_class_have_what_can_be_had(scored):
    model, store, rows, label, probability, patient = scored
    sick = label == 1
    few = (model, store, rows[sick], label[sick], probability[sick], patient[sick])
    (first, *_) = check_robustness(*few, 0.5, batch_size=30)["blur"]["levels"]
    assert first["auroc"]["value"] is first["specificity"]["value"] is None
    assert first["sensitivity"]["value"] is not None


def test_only_so_many_films_are_drawn(scored, monkeypatch):
    monkeypatch.setattr(robustness, "FILMS", 10)
    assert check_robustness(*scored, 0.5, batch_size=30)["films"] == 10


@pytest.mark.parametrize(
    ("normal", "pneumonia", "count", "drawn"),
    [
        (50, 90, 40, (20, 20)),
        (5, 90, 40, (5, 35)),
        (90, 5, 40, (35, 5)),
        (9, 8, 40, (9, 8)),
        (0, 50, 40, (0, 40)),
    ],
)
def test_films_are_drawn_evenly_as_far_as_there_are_such(normal, pneumonia, count, drawn):
    label = np.random.default_rng(0).permutation(np.repeat([0, 1], [normal, pneumonia]))
    chosen = draw_evenly(label, count)
    assert tuple(np.bincount(label[chosen], minlength=2)) == drawn
    assert (np.diff(chosen) > 0).all() and np.array_equal(chosen, draw_evenly(label, count))
