import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_pneumonia.data import phantom
from hf_pneumonia.evaluation.shortcuts import black_out, check_shortcuts, keep_masks

PATIENTS = [str(number) for number in range(40)]
LABEL = np.repeat([0, 1], 20)


class Brightness(nn.Module):
    """The brighter a film is anywhere, the more it has pneumonia."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, inputs):
        margin = self.slope * inputs.mean((1, 2, 3))
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(margin), margin], 1))


class Films:
    """(40, 50, 50): gray, but with pneumonia a bright patch."""

    size = 50

    def __init__(self, patch: tuple[slice, slice]):
        self.films = np.full((40, 50, 50), 100, np.uint8)
        self.films[LABEL == 1, patch[0], patch[1]] = 200

    def __getitem__(self, rows):
        return self.films[np.asarray(rows)]


def areas(patch: tuple[slice, slice]) -> dict:
    result = check_shortcuts(
        Brightness(), Films(patch), np.arange(40), LABEL, LABEL.astype(float), PATIENTS, 16
    )
    return {name: one["auroc"]["value"] for name, one in result.items()}


def test_a_sign_in_the_lungs_is_gone_with_the_lungs_alone():
    found = areas((slice(20, 30), slice(10, 20)))
    assert found.pop("lungs_blacked_out") == 0.5
    assert set(found.values()) == {1.0} and list(found)[0] == "as_they_are"


def test_a_marker_in_the_corner_is_gone_with_the_corners_and_with_all_but_the_lungs():
    found = areas((slice(0, 4), slice(3, 4)))
    assert found["lungs_blacked_out"] == 1.0
    assert found["corners_blacked_out"] == found["lungs_only"] == 0.5


def test_the_report_has_mean_probabilities_by_class_and_is_plain():
    patch = (slice(20, 30), slice(10, 20))
    films = Films(patch)
    probability = np.linspace(0, 1, 40)
    result = check_shortcuts(Brightness(), films, np.arange(40), LABEL, probability, PATIENTS, 16)
    expected = {
        "NORMAL": pytest.approx(probability[:20].mean()),
        "PNEUMONIA": pytest.approx(probability[20:].mean()),
    }
    assert result["as_they_are"]["mean_probability"] == expected
    assert all(one["films"] == 40 for one in result.values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.filterwarnings("error")
def test_films_of_one_class_have_no_area():
    films = Films((slice(20, 30), slice(10, 20)))
    result = check_shortcuts(Brightness(), films, np.arange(20), LABEL[:20], np.zeros(20), PATIENTS[:20], 16)
    for one in result.values():
        assert one["auroc"] == {"value": None, "ci95": None}
        assert one["mean_probability"]["PNEUMONIA"] is None


@pytest.mark.parametrize("size", [64, 224])
def test_the_box_and_what_lies_around_it_make_the_whole_film(size):
    masks = keep_masks(size)
    np.testing.assert_array_equal(masks["lungs_only"], ~masks["lungs_blacked_out"])
    assert masks["lungs_only"].mean() == pytest.approx(0.8 * 0.84, abs=0.02)
    assert masks["borders_blacked_out"].mean() == pytest.approx(0.9**2, abs=0.03)
    assert masks["corners_blacked_out"].mean() == pytest.approx(1 - 4 * 0.2**2, abs=0.02)
    for mask in masks.values():
        np.testing.assert_array_equal(mask, mask[::-1])
        np.testing.assert_array_equal(mask, mask[:, ::-1])


def test_the_box_holds_the_lesions_of_simulated_films():
    lesions = [film.lesion for patient in range(1, 31) for film in phantom.simulate_patient(patient, size=64)]
    lesions = np.stack(lesions)
    assert black_out(lesions.astype(np.uint8), keep_masks(64)["lungs_only"]).sum() / lesions.sum() > 0.97
