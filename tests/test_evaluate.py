"""`python -m hf_pneumonia evaluate` from end to end, on the run of conftest.py."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_films
from safetensors.torch import load_file, save_file

from hf_pneumonia.__main__ import main
from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.compare import compare_runs
from hf_pneumonia.evaluation.evaluate import choose_films
from hf_pneumonia.evaluation.metrics import METRICS


def _report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def _rows(folder: Path) -> list[dict]:
    with open(folder / "predictions_test.csv", newline="") as file:
        return list(csv.DictReader(file))


def _evaluate(model: Path, source: Path, folder: Path, *flags: str) -> dict:
    main(["evaluate", "--model", str(model), "--dataset", str(source), "--output", str(folder), *flags])
    return _report(folder)


def _published(run: Path, folder: Path, change=lambda config: None) -> Path:
    """Only config and weights of a run."""
    folder.mkdir()
    shutil.copy(run / "model.safetensors", folder)
    config = json.loads((run / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_images_that_the_model_was_trained_on_are_counted_and_metrics_given_without_them(
    finished_run, film_folder, tmp_path, capsys
):
    report, own = (
        _evaluate(finished_run, film_folder, tmp_path / "all", "--films", "all"),
        _report(finished_run),
    )
    splits = own["data"]["splits"]
    taught = splits["train"]["films"] + splits["validation"]["films"]
    patients = splits["train"]["patients"] + splits["validation"]["patients"]
    assert report["seen_in_training"] == {"films": taught, "patients": patients}
    assert len(_rows(tmp_path / "all")) == taught + splits["test"]["films"]
    # The others are the test split, with the metrics of the training's report.
    for place in ("splits", "operating_point"):
        found, expected = report[place]["unseen"], own[place]["test"]
        assert found["confusion_matrix"] == expected["confusion_matrix"]
        for name in METRICS:
            assert found[name]["value"] == pytest.approx(expected[name]["value"], abs=1e-6)
            assert found[name]["ci95"] == pytest.approx(expected[name]["ci95"], abs=1e-6)
    assert report["operating_point"]["threshold"] == own["operating_point"]["threshold"]
    assert report["calibration"]["unseen"].keys() == own["calibration"]["test"].keys()
    assert report["checks"]["split"] == "unseen" and set(report["checks"]["errors"]) == {"unseen"}
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum(line.startswith(f"WARNING: {taught} of these films, of {patients} patients") for line in lines)
        == 1
    )
    assert any(line.startswith(f"{splits['test']['films']} of them unseen: AUROC") for line in lines)
    assert sum(line.startswith("proportions swapped by 1.2: AUROC") for line in lines) == 1


@pytest.fixture(scope="module")
def published(finished_run, film_folder, tmp_path_factory):
    """The published files, without an operating point, scored on the run's data set."""
    folder = tmp_path_factory.mktemp("published")
    model = _published(finished_run, folder / "model", lambda config: config.pop("pneumonia"))
    _evaluate(model, film_folder, folder / "out")
    return folder / "out"


def test_a_published_model_gives_what_its_training_left_of_the_test_split(published, finished_run):
    report, found, expected = _report(published), _rows(published), _rows(finished_run)
    for name in ("file", "patient_id", "label"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    probabilities = [[float(row["probability"]) for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
    plots = {path.name for path in (published / "plots").iterdir()}
    assert plots == {path.name for path in (finished_run / "plots").iterdir()} - {"curves.png"}
    assert (published / "audit" / "manifest.csv").is_file()
    # It has neither manifest nor operating point, which the report says.
    assert report["seen_in_training"] is None and report["operating_point"]["threshold"] == 0.5
    assert len(report["notes"]) == 1 and report["data"]["films"] == "test"
    # It names the model and not its path.
    assert report["model"]["name"] == "model" and report["model"]["image_size"] == 64
    facts = {key: value for key, value in report.items() if key != "audit"}
    assert str(published.parent) not in json.dumps(facts) and "recipe" not in report
    # And it does not differ from the training.
    comparison, _ = compare_runs([finished_run, published])
    first, again = comparison["runs"]
    assert first["parameters"] == again["parameters"] > 0
    assert comparison["same_films"] and comparison["tests"][0]["delong"]["difference"] == 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_patient_of_the_training_is_known_by_name_on_another_image_and_one_class_is_enough(
    finished_run, tmp_path, monkeypatch, capsys
):
    # person0 and person1 were trained on; these are other pictures of them. person500 was not.
    write_films(tmp_path / "films", 0, 2)
    write_films(tmp_path / "films", 0, 1, first=500)
    for path in sorted((tmp_path / "films" / "PNEUMONIA").iterdir()):
        path.rename(path.with_name(path.name.replace("bacteria_", "bacteria_5")))
    for path in (tmp_path / "films" / "PNEUMONIA").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")  # of other bytes
    monkeypatch.chdir(tmp_path)  # where the folder is named after model and source
    main(["evaluate", "--model", str(finished_run), "--dataset", str(tmp_path / "films")])
    report = _report(tmp_path / "runs" / "evaluate-tiny-films")
    assert report["seen_in_training"] == {"films": 2, "patients": 2}
    assert report["data"]["films"] == "all" and report["splits"]["unseen"]["films"] == 1
    test = report["splits"]["test"]
    assert test["auroc"]["value"] is test["specificity"]["value"] is None
    assert test["sensitivity"]["value"] is not None
    assert "AUROC not defined" in capsys.readouterr().out


def test_nan_answers_and_the_folder_of_a_training_are_clear_errors(finished_run, film_folder, tmp_path):
    model = _published(finished_run, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["fc.bias"] = torch.full((2,), float("nan"))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="model: its answers to 30 films"):
        _evaluate(model, film_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = (finished_run / "report.json").read_bytes()
    with pytest.raises(UsageError, match="choose another folder"):
        _evaluate(finished_run, film_folder, finished_run)
    assert (finished_run / "report.json").read_bytes() == before


@pytest.mark.slow
def test_several_processes_score_every_image_once_and_one_of_them_writes(
    finished_run, film_folder, published, tmp_path
):
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--model", finished_run, "--dataset", film_folder, "--output", tmp_path / "two"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "hf_pneumonia", "evaluate", *map(str, flags)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1 and "Traceback" not in done.stderr
    assert _report(tmp_path / "two")["processes"] == 2
    found, expected = _rows(tmp_path / "two"), _rows(published)
    assert [row["file"] for row in found] == [row["file"] for row in expected]
    probabilities = [[float(row["probability"]) for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
    levels, alone = (
        _report(folder)["checks"]["appearance"]["proportions"] for folder in (tmp_path / "two", published)
    )
    assert [one["auroc"]["value"] for one in levels.values()] == pytest.approx(
        [one["auroc"]["value"] for one in alone.values()], abs=1e-6
    )


def test_by_default_the_test_split_is_scored_where_there_is_one(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 32, tmp_path, must_split=False)
    chosen, which = choose_films(films, None)
    assert which == "test" and chosen.rows("test").tolist() == films.rows("test").tolist()
    assert set(chosen.split) == {"test", ""}
    assert set(chosen.reason[chosen.split == ""]) == {"not scored"}
    validation, which = choose_films(films, "validation")
    assert which == "validation"
    assert validation.rows("test").tolist() == films.rows("validation").tolist()


def test_all_images_are_those_that_count_once_whatever_their_split(tmp_path):
    write_films(tmp_path / "films" / "train", 30, 30)
    write_films(tmp_path / "films" / "test", 5, 5, first=200)
    # A copy, and another image of a patient of the test split.
    normal, sick = tmp_path / "films/train/NORMAL", tmp_path / "films/train/PNEUMONIA"
    shutil.copy(normal / "IM-0000-0001.jpeg", normal / "IM-0000-0002.jpeg")
    write_films(tmp_path / "more", 0, 1, first=7)
    more = tmp_path / "more/PNEUMONIA/person7_bacteria_7.jpeg"
    more.rename(sick / "person200_bacteria_1.jpeg")
    films = prepare_films(str(tmp_path / "films"), 32, tmp_path, must_split=False)
    chosen, _ = choose_films(films, "all")
    assert len(chosen.rows("test")) == 71 and np.sum(films.split != "") == 70


def test_a_split_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    films = prepare_films(str(tmp_path / "films"), 32, tmp_path, must_split=False)
    with pytest.raises(UsageError, match="test is empty .*--films all"):
        choose_films(films, "test")
