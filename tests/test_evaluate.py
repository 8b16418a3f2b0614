"""`python -m hf_pneumonia evaluate` end to end, on the run of conftest.py."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TORCHRUN, write_image, write_images

from hf_pneumonia.__main__ import main
from hf_pneumonia.data.cohort import prepare_cohort
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.evaluate import choose_images
from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.modeling.build import build_model


def _report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def _rows(folder: Path) -> list[dict]:
    with open(folder / "predictions_test.csv", newline="") as file:
        return list(csv.DictReader(file))


def _evaluate(model: Path, source: Path, folder: Path, *flags: str) -> dict:
    main(["evaluate", "--model", str(model), "--dataset", str(source), "--output", str(folder), *flags])
    return _report(folder)


def test_images_that_the_model_was_trained_on_are_counted_and_unseen_ones_measured_apart(
    finished_run, image_folder, tmp_path, capsys
):
    report = _evaluate(finished_run, image_folder, tmp_path / "all", "--images", "all")
    own = _report(finished_run)
    splits = own["data"]["splits"]
    seen = splits["train"]["films"] + splits["validation"]["films"]
    patients = splits["train"]["patients"] + splits["validation"]["patients"]
    assert report["seen_in_training"] == {"films": seen, "patients": patients}
    assert len(_rows(tmp_path / "all")) == seen + splits["test"]["films"]
    # The others are the test split, with the metrics of the training report.
    for place in ("splits", "operating_point"):
        found, expected = report[place]["unseen"], own[place]["test"]
        assert found["confusion_matrix"] == expected["confusion_matrix"]
        for name in METRICS:
            assert found[name]["value"] == pytest.approx(expected[name]["value"], abs=1e-6)
            assert found[name]["ci95"] == pytest.approx(expected[name]["ci95"], abs=1e-6)
    assert report["operating_point"]["threshold"] == own["operating_point"]["threshold"]
    assert report["calibration"]["unseen"].keys() == own["calibration"]["test"].keys()
    assert report["checks"]["split"] == "unseen" and set(report["checks"]["errors"]) == {"unseen"}
    assert f"WARNING: {seen} of these images, of {patients} patients" in capsys.readouterr().out


@pytest.fixture(scope="module")
def published(finished_run, image_folder, tmp_path_factory):
    """Folder of an evaluation of the published files, without an operating point, on the run's data set."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "model").mkdir()
    shutil.copy(finished_run / "model.safetensors", folder / "model")
    config = json.loads((finished_run / "config.json").read_text())
    del config["pneumonia"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    _evaluate(folder / "model", image_folder, folder / "out")
    return folder / "out"


def _assert_same_predictions(folder: Path, other: Path) -> None:
    found, expected = _rows(folder), _rows(other)
    for name in ("file", "patient_id", "label"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    probabilities = [[float(row["probability"]) for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)


def test_a_published_model_reproduces_the_test_predictions_of_its_training(published, finished_run):
    report = _report(published)
    _assert_same_predictions(published, finished_run)
    plots = {path.name for path in (published / "plots").iterdir()}
    assert plots == {path.name for path in (finished_run / "plots").iterdir()} - {"curves.png"}
    # The report notes the missing manifest and operating point.
    assert report["seen_in_training"] is None and report["operating_point"]["threshold"] == 0.5
    assert len(report["notes"]) == 1 and report["data"]["films"] == "test"
    # It has the name of the model and not its path.
    assert report["model"]["name"] == "model" and report["model"]["image_size"] == 64
    facts = {key: value for key, value in report.items() if key != "audit"}
    assert str(published.parent) not in json.dumps(facts)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_training_patient_is_recognised_by_id_on_another_image_and_one_class_is_enough(
    finished_run, tmp_path, monkeypatch
):
    # person0 and person1 were trained on, by other images; person500 was not.
    write_images(tmp_path / "images", 0, 2)
    write_images(tmp_path / "images", 0, 1, first=500)
    for path in sorted((tmp_path / "images" / "PNEUMONIA").iterdir()):
        path.write_bytes(path.read_bytes() + b"\0")  # with other bytes
        path.rename(path.with_name(path.name.replace("bacteria_", "bacteria_5")))
    monkeypatch.chdir(tmp_path)  # the default output folder is named after model and source
    main(["evaluate", "--model", str(finished_run), "--dataset", str(tmp_path / "images")])
    report = _report(tmp_path / "runs" / "evaluate-tiny-images")
    assert report["seen_in_training"] == {"films": 2, "patients": 2}
    assert report["data"]["films"] == "all" and report["splits"]["unseen"]["films"] == 1
    test = report["splits"]["test"]
    assert test["auroc"]["value"] is test["specificity"]["value"] is None
    assert test["sensitivity"]["value"] is not None


def test_nan_probabilities_and_the_folder_of_a_training_are_clear_errors(
    finished_run, image_folder, tmp_path
):
    before = (finished_run / "report.json").read_bytes()
    with pytest.raises(UsageError, match="expected no training run"):
        _evaluate(finished_run, image_folder, finished_run)
    assert (finished_run / "report.json").read_bytes() == before
    model = build_model("resnet10t", 32)
    torch.nn.init.constant_(model.timm_model.fc.bias, float("nan"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="30 of 30 images") as error:
        _evaluate(tmp_path / "model", image_folder, tmp_path / "out")
    assert error.value.code == "invalid-probabilities"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_several_processes_score_every_image_once_and_one_writes(
    finished_run, image_folder, published, tmp_path
):
    two = tmp_path / "two"
    command = [sys.executable, "-m", *TORCHRUN, "-m", "hf_pneumonia", "evaluate", "--model", finished_run]
    command += ["--dataset", image_folder, "--output", two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.count("report: ") == 1, done.stderr
    assert _report(two)["processes"] == 2
    _assert_same_predictions(two, published)
    levels, alone = (_report(one)["checks"]["appearance"]["proportions"] for one in (two, published))
    for factor, one in levels.items():
        assert one["auroc"]["value"] == pytest.approx(alone[factor]["auroc"]["value"], abs=1e-6)


def test_by_default_the_test_split_is_scored_if_there_is_one(image_folder, tmp_path):
    cohort = prepare_cohort(str(image_folder), 32, tmp_path, must_split=False)
    for asked, expected in ((None, "test"), ("validation", "validation")):
        chosen, which = choose_images(cohort, asked)
        assert which == expected and chosen.rows("test").tolist() == cohort.rows(expected).tolist()
        assert set(chosen.split) == {"test", ""}


def test_all_images_are_scored_once_in_any_split(tmp_path):
    write_images(tmp_path / "images" / "train", 30, 30)
    write_images(tmp_path / "images" / "test", 5, 5, first=200)
    # A copy, and another image of a patient of the test split.
    normal, pneumonia = tmp_path / "images/train/NORMAL", tmp_path / "images/train/PNEUMONIA"
    shutil.copy(normal / "IM-0000-0001.jpeg", normal / "IM-0000-0002.jpeg")
    write_image(pneumonia / "person200_bacteria_1.jpeg", 1, np.random.default_rng(7))
    cohort = prepare_cohort(str(tmp_path / "images"), 32, tmp_path, must_split=False)
    chosen, _ = choose_images(cohort, "all")
    assert len(chosen.rows("test")) == 71 and np.sum(cohort.split != "") == 70
