"""`python -m hf_pneumonia evaluate` from end to end, on the run of conftest.py."""

import csv
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_films
from safetensors.torch import load_file, save_file

from hf_pneumonia.__main__ import main
from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.errors import UsageError
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


@pytest.fixture(scope="module")
def evaluated(finished_run, film_folder, tmp_path_factory):
    """The run scored anew on its own data set."""
    folder = tmp_path_factory.mktemp("evaluated") / "test"
    _evaluate(finished_run, film_folder, folder)
    return folder


def test_a_run_on_its_own_test_split_has_the_figures_of_its_report(evaluated, finished_run):
    report, own = _report(evaluated), _report(finished_run)
    for place in ("splits", "operating_point"):
        found, expected = report[place]["test"], own[place]["test"]
        assert found["confusion_matrix"] == expected["confusion_matrix"]
        for name in METRICS:
            assert found[name]["value"] == pytest.approx(expected[name]["value"], abs=1e-6)
            assert found[name]["ci95"] == pytest.approx(expected[name]["ci95"], abs=1e-6)
    assert report["operating_point"]["threshold"] == own["operating_point"]["threshold"]
    assert report["calibration"]["test"].keys() == own["calibration"]["test"].keys()
    assert report["seen_in_training"] == {"films": 0, "patients": 0}
    assert set(report["splits"]) == {"test"} and report["data"]["films"] == "test"


def test_it_leaves_what_a_training_leaves_of_its_test_split(evaluated, finished_run):
    found, expected = _rows(evaluated), _rows(finished_run)
    assert [list(row) for row in found] == [list(row) for row in expected]
    for name in ("file", "patient_id", "label"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in found],
        [float(row["probability"]) for row in expected],
        atol=1e-5,
    )
    plots = {path.name for path in (evaluated / "plots").iterdir()}
    assert plots == {path.name for path in (finished_run / "plots").iterdir()} - {"curves.png"}
    assert (evaluated / "audit" / "manifest.csv").is_file()
    assert not (evaluated / "model.safetensors").exists()


def test_the_report_names_the_model_and_not_the_way_to_it(evaluated, finished_run):
    report = _report(evaluated)
    assert report["model"]["name"] == "tiny" and report["model"]["image_size"] == 64
    weights = load_file(finished_run / "model.safetensors")
    numbers = sum(value.numel() for name, value in weights.items() if "running" not in name)
    assert report["model"]["parameters"] == numbers - sum("num_batches" in name for name in weights)
    facts = {key: value for key, value in report.items() if key != "audit"}
    assert str(finished_run.parent) not in json.dumps(facts)
    assert "recipe" not in report and {"versions", "device", "processes"} <= report.keys()


def test_films_that_the_model_was_taught_are_counted_and_figures_given_without_them(
    finished_run, film_folder, tmp_path, capsys
):
    report = _evaluate(finished_run, film_folder, tmp_path / "all", "--films", "all")
    splits = _report(finished_run)["data"]["splits"]
    taught = splits["train"]["films"] + splits["validation"]["films"]
    patients = splits["train"]["patients"] + splits["validation"]["patients"]
    assert report["seen_in_training"] == {"films": taught, "patients": patients}
    assert len(_rows(tmp_path / "all")) == taught + splits["test"]["films"]
    own = _report(finished_run)
    for place in ("splits", "operating_point"):
        for name in ("auroc", "sensitivity", "specificity"):
            found, expected = report[place]["unseen"][name], own[place]["test"][name]
            assert found["value"] == pytest.approx(expected["value"], abs=1e-6)
    assert report["checks"]["split"] == "unseen" and set(report["checks"]["errors"]) == {"unseen"}
    assert set(report["calibration"]) == {"bins", "test", "unseen"}
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum(x.startswith(f"WARNING: {taught} of these films, of {patients} patients, taught") for x in lines)
        == 1
    )
    assert any(line.startswith(f"{splits['test']['films']} of them unseen: AUROC") for line in lines)
    assert sum(line.startswith("proportions swapped by 1.2: AUROC") for line in lines) == 1


def test_a_patient_that_the_model_was_taught_is_known_by_his_name_on_another_film(
    finished_run, tmp_path, monkeypatch
):
    # person0 and person1 were trained on; these are other pictures of them, in other files.
    write_films(tmp_path / "films", 3, 2, names=("normal", "bacterial"))
    for number, path in enumerate(sorted((tmp_path / "films" / "normal").iterdir())):
        path.rename(path.with_name(f"film{number}.jpeg"))
    for path in sorted((tmp_path / "films" / "bacterial").iterdir()):
        (path.with_name(path.name.replace("bacteria_", "bacteria_5"))).write_bytes(path.read_bytes() + b"\0")
        path.unlink()
    for path in (tmp_path / "films" / "normal").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")  # of other bytes
    monkeypatch.chdir(tmp_path)  # where the folder is named after model and source
    main(["evaluate", "--model", str(finished_run), "--dataset", str(tmp_path / "films")])
    report = _report(tmp_path / "runs" / "evaluate-tiny-films")
    assert report["seen_in_training"] == {"films": 2, "patients": 2}
    assert report["data"]["films"] == "all"


@pytest.mark.parametrize("normal, pneumonia", [(5, 0), (0, 3)])
def test_films_of_one_class_give_a_clear_report(finished_run, tmp_path, capsys, normal, pneumonia):
    write_films(tmp_path / "films", normal, pneumonia, first=500)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # scikit-learn's are among them
        warnings.simplefilter("error", RuntimeWarning)
        report = _evaluate(finished_run, tmp_path / "films", tmp_path / "out")
    test, matrix = report["splits"]["test"], report["splits"]["test"]["confusion_matrix"]
    assert (matrix["tn"] + matrix["fp"], matrix["fn"] + matrix["tp"]) == (normal, pneumonia)
    defined = {name: test[name]["value"] is not None for name in ("auroc", "sensitivity", "specificity")}
    assert defined == {
        "auroc": bool(normal and pneumonia), "sensitivity": pneumonia > 0, "specificity": normal > 0
    }  # fmt: skip
    assert ("AUROC not defined" in capsys.readouterr().out) == (not defined["auroc"])


def _copy(run: Path, folder: Path) -> Path:
    """Only what is published of a run."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, folder)
    return folder


def test_a_model_without_manifest_and_operating_point_is_scored_and_both_are_said(
    finished_run, film_folder, tmp_path, capsys, caplog
):
    model = _copy(finished_run, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    del config["pneumonia"]
    (model / "config.json").write_text(json.dumps(config))
    report = _evaluate(model, film_folder, tmp_path / "out")
    assert report["seen_in_training"] is None and report["operating_point"]["threshold"] == 0.5
    assert report["notes"] == ["the model states no operating point: 0.5 is taken"]
    assert "note: the model states no operating point" in capsys.readouterr().out
    assert "whether it was trained on these films is not known" in caplog.text


def test_answers_that_are_no_numbers_are_one_clear_line(finished_run, film_folder, tmp_path):
    model = _copy(finished_run, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["fc.bias"] = torch.full((2,), float("nan"))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="model: its answers to 30 films are no numbers"):
        _evaluate(model, film_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_training_is_not_written_to(finished_run, film_folder):
    before = (finished_run / "report.json").read_bytes()
    with pytest.raises(UsageError, match="holds a training run; choose another folder"):
        _evaluate(finished_run, film_folder, finished_run)
    assert (finished_run / "report.json").read_bytes() == before


@pytest.mark.slow
def test_several_processes_score_every_film_once_and_one_of_them_writes(
    finished_run, film_folder, evaluated, tmp_path
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
    found, expected = _rows(tmp_path / "two"), _rows(evaluated)
    assert [row["file"] for row in found] == [row["file"] for row in expected]
    difference = [
        float(a["probability"]) - float(b["probability"]) for a, b in zip(found, expected, strict=True)
    ]
    assert np.abs(difference).max() < 1e-5
    levels, alone = (
        _report(folder)["checks"]["appearance"]["proportions"] for folder in (tmp_path / "two", evaluated)
    )
    assert [one["auroc"]["value"] for one in levels.values()] == [
        pytest.approx(one["auroc"]["value"], abs=1e-6) for one in alone.values()
    ]


def test_by_default_the_test_split_is_scored_where_there_is_one(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 32, tmp_path, must_split=False)
    chosen, which = choose_films(films, None)
    assert which == "test" and chosen.rows("test").tolist() == films.rows("test").tolist()
    assert set(chosen.split) == {"test", ""}
    assert set(chosen.reason[chosen.split == ""]) == {"not scored"}
    validation, which = choose_films(films, "validation")
    assert which == "validation"
    assert validation.rows("test").tolist() == films.rows("validation").tolist()


def test_all_films_are_those_that_count_once_whatever_their_split(film_folder, tmp_path):
    write_films(tmp_path / "films" / "train", 30, 30)
    write_films(tmp_path / "films" / "test", 5, 5, first=200)
    # A copy, and another film of a patient of the test split.
    shutil.copy(
        tmp_path / "films/train/NORMAL/IM-0000-0001.jpeg", tmp_path / "films/train/NORMAL/IM-0000-0002.jpeg"
    )
    write_films(tmp_path / "more", 0, 1, first=7)
    (tmp_path / "more/PNEUMONIA/person7_bacteria_7.jpeg").rename(
        tmp_path / "films/train/PNEUMONIA/person200_bacteria_1.jpeg"
    )
    films = prepare_films(str(tmp_path / "films"), 32, tmp_path, must_split=False)
    chosen, _ = choose_films(films, "all")
    assert len(chosen.rows("test")) == 71 and np.sum(films.split != "") == 70


def test_a_split_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    films = prepare_films(str(tmp_path / "films"), 32, tmp_path, must_split=False)
    with pytest.raises(UsageError, match="no film to score: test is empty .*too few.*--films all"):
        choose_films(films, "test")
