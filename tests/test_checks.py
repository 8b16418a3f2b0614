import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.evaluation.checks import explain, run_checks, write_checks
from hf_pneumonia.evaluation.scoring import Predictions, predict_split
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.heatmap import heat_maps

SPLITS = ("test", "validation")


@pytest.fixture(scope="module")
def checked(film_folder, tmp_path_factory):
    """Model, films, rows and predictions, and what the checks say of them."""
    torch.manual_seed(0)
    films = prepare_films(str(film_folder), 64, tmp_path_factory.mktemp("cache"))
    model = build_model("resnet10t", 64)
    nn.init.normal_(model.timm_model.fc.weight)
    predictions = {split: predict_split(model, films, split, 32) for split in SPLITS}
    threshold = float(np.median(predictions["test"].probability))  # so that there are errors of both kinds
    checks = run_checks(model, films, predictions, threshold, 32)
    return SimpleNamespace(model=model, films=films, predictions=predictions, checks=checks)


def test_the_report_gets_plain_values_and_no_name_of_a_film_or_patient(checked):
    text = json.dumps(checked.checks, allow_nan=False)
    assert json.loads(text) == checked.checks
    assert list(checked.checks)[2:] == ["appearance", "shortcuts", "robustness", "subgroups", "errors"]
    for split in checked.predictions.values():
        assert not any(name in text for name in (*split.file, *split.patient_id))


def test_the_first_split_is_checked_and_all_are_searched_for_errors(checked):
    assert checked.checks["split"] == "test"
    assert checked.checks["shortcuts"]["as_they_are"]["films"] == 30
    assert {name: one["films"] for name, one in checked.checks["errors"].items()} == {
        "test": 30,
        "validation": 20,
    }
    assert set(checked.checks["subgroups"]["families"]) == {"IM", "person-bacteria"}


def test_the_pictures_and_the_errors_are_written(checked, tmp_path):
    arguments = checked.model, checked.films, checked.predictions
    write_checks(tmp_path, checked.checks, *arguments)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert written == [
        "errors/errors.csv",
        "errors/errors.png",
        "plots/appearance.png",
        "plots/robustness.png",
        "plots/shortcuts.png",
    ]
    for picture in tmp_path.rglob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200 and np.ptp(np.asarray(image.convert("L"))) > 100
    with open(tmp_path / "errors" / "errors.csv", newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    counts = checked.checks["errors"]
    assert kinds.count("miss") == sum(one["miss"] for one in counts.values()) > 0


def test_maps_are_those_of_the_films_in_their_order(checked):
    films = checked.films.store[checked.films.rows("test")[:11]]
    maps, note = explain(checked.model, films, batch_size=4)
    expected = heat_maps(checked.model, network_input(torch.from_numpy(films))).numpy()
    assert note == ""
    np.testing.assert_allclose(maps, expected, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_ten_films_of_one_class_go_through(checked, tmp_path, label):
    rows = checked.films.rows("test")[checked.predictions["test"].label == label][:10]
    split = np.full(len(checked.films.split), "", dtype=object)
    split[rows] = "test"
    films = dataclasses.replace(checked.films, split=split)
    predictions = {
        "test": Predictions(films.file[rows], ["p"] * 10, films.label[rows], np.linspace(0, 1, 10))
    }
    checks = run_checks(checked.model, films, predictions, 0.5, 32)
    assert checks["shortcuts"]["as_they_are"]["auroc"]["value"] is None
    assert checks["appearance"] is None
    write_checks(tmp_path, checks, checked.model, films, predictions)
    assert (tmp_path / "plots" / "shortcuts.png").exists()
    assert not (tmp_path / "plots" / "appearance.png").exists()


@pytest.mark.filterwarnings("error")
def test_a_network_without_errors_has_a_sheet_that_says_so(checked, tmp_path):
    right = {
        "test": Predictions(
            checked.predictions["test"].file,
            checked.predictions["test"].patient_id,
            checked.predictions["test"].label,
            checked.predictions["test"].label.astype(float),
        )
    }
    write_checks(tmp_path, {**checked.checks, "threshold": 0.5}, checked.model, checked.films, right)
    assert (tmp_path / "errors" / "errors.csv").read_text().count("\n") == 1
    assert (tmp_path / "errors" / "errors.png").exists()
