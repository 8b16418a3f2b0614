"""train.py from end to end: the files of a run folder, resuming, several processes, and errors."""

import csv
import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TORCHRUN, run_train, write_images
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainingArguments

import train
from hf_pneumonia.data.cohort import prepare_cohort
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import METRICS, score_predictions
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_images
from hf_pneumonia.training import run_folder
from hf_pneumonia.training.arguments import Recipe

# A training of seconds, for tests that do not depend on its accuracy.
QUICK = (
    "--image_size", 32, "--model", "test_resnet", "--num_train_epochs", 1, "--learning_rate", 1e-3,
    "--per_device_train_batch_size", 16, "--bf16", "false", "--checks", "false", "--ood", "false",
)  # fmt: skip


def _train(images: Path, run: Path, *flags: object) -> None:
    train.main([*map(str, ("--output_dir", run, "--dataset", images, *flags))])


def _predictions(run: Path, split: str) -> list[dict]:
    with open(run / f"predictions_{split}.csv", newline="") as file:
        return list(csv.DictReader(file))


def _probabilities(run: Path, split: str = "test") -> np.ndarray:
    return np.array([float(row["probability"]) for row in _predictions(run, split)])


def _report(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


def test_the_run_folder_holds_the_model_the_evidence_and_the_recipe(finished_run):
    names = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert names == {
        "config.json", "model.safetensors", "gate.safetensors", "recipe.yaml", "report.json",
        "README.md", "audit/audit.json", "audit/audit.html", "audit/manifest.csv", "audit/seen_before.csv",
        "predictions_validation.csv", "predictions_test.csv",
        *(f"plots/{name}.png" for name in ("curves", "confusion_matrix", "roc", "class_distribution")),
        *(f"plots/{name}.png" for name in ("reliability", "samples", "shortcuts", "robustness")),
        "plots/appearance.png",
        "errors/errors.csv", "errors/errors.png",
    }  # fmt: skip


def test_every_published_metric_follows_from_the_predictions(finished_run):
    report = _report(finished_run)
    labels = {}
    for split in ("validation", "test"):
        rows = _predictions(finished_run, split)
        labels[split] = np.array([row["label"] == "PNEUMONIA" for row in rows])
        found = report["splits"][split]
        scores = score_predictions(labels[split], _probabilities(finished_run, split))
        values = {name: found[name]["value"] for name in METRICS}
        assert values == pytest.approx({name: scores[name] for name in METRICS})
        assert found["confusion_matrix"] == scores["confusion_matrix"]
        for name in METRICS:
            low, high = found[name]["ci95"] or (0, 1)
            assert low <= found[name]["value"] <= high
    assert set(report["splits"]["train"]) == set(report["splits"]["test"])
    assert report["splits"]["test"]["auroc"]["value"] > 0.9  # it learned the task
    point = report["operating_point"]
    caught = _probabilities(finished_run, "validation")[labels["validation"]] >= point["threshold"]
    assert np.mean(caught) == pytest.approx(point["sensitivity"]) and np.mean(caught) >= 0.95
    config = json.loads((finished_run / "config.json").read_text())["pneumonia"]
    assert config["threshold"] == point["threshold"]
    for name, stated in report["operating_points"].items():
        assert config["operating_points"][name]["threshold"] == stated["threshold"]


def test_the_report_has_all_that_reproduces_the_run(finished_run, image_folder):
    report = _report(finished_run)
    assert report["seed"] == 42 and {"torch", "timm", "transformers", "python"} <= report["versions"].keys()
    assert report["data"]["splits"]["train"]["films"] == 85 and not report["data"]["simulated"]
    assert yaml.safe_load((finished_run / "recipe.yaml").read_text()) == report["recipe"]
    files = [row["file"] for row in _predictions(finished_run, "test")]
    assert sorted(files) == sorted(str(path) for path in (image_folder / "test").glob("*/*"))
    # A line for each epoch, and the next commands.
    output = (finished_run.parent / "output.txt").read_text()
    epochs = [line.split()[1] for line in output.splitlines() if line.startswith("epoch")]
    assert epochs == ["1/3", "2/3", "3/3"] and [epoch["epoch"] for epoch in report["history"]] == [1, 2, 3]
    assert f"app.py --model {finished_run}" in output and f"push_to_hub.py {finished_run}" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_a_network_of_each_family_trains_and_transformers_gives_the_same_predictions(
    name, image_folder, tmp_path
):
    flags = ("--model", name, "--image_size", 64, "--drop_rate", 0.1, "--max_steps", 2, "--ood", "true")
    _train(image_folder, tmp_path, *QUICK, *flags)
    images = [Image.open(row["file"]).convert("RGB") for row in _predictions(tmp_path, "test")]
    images = AutoImageProcessor.from_pretrained(tmp_path)(images)["pixel_values"]
    with torch.no_grad():
        logits = AutoModelForImageClassification.from_pretrained(tmp_path).eval()(images).logits
    np.testing.assert_allclose(logits.softmax(1)[:, 1], _probabilities(tmp_path), atol=1e-5)


def test_copies_in_a_second_source_are_removed_and_images_of_covid_are_only_scored(
    image_folder, finished_run, tmp_path
):
    """The second source has 12 training and 6 test images of the first, enlarged, and 4 of COVID-19."""
    second, run = tmp_path / "second", tmp_path / "run"
    for label in ("NORMAL", "PNEUMONIA"):
        (second / label).mkdir(parents=True)
        for split, count in (("train", 6), ("test", 3)):
            for number, path in enumerate(sorted((image_folder / split / label).iterdir())[:count]):
                image = Image.open(path)
                enlarged = image.resize((2 * image.width, 2 * image.height))
                enlarged.save(second / label / f"{split}{number}.png")
    write_images(second, 4, 0, first=900, names=("COVID-19", ""))
    _train(image_folder, run, second, *QUICK, "--covid", "keep")
    data = _report(run)["data"]
    assert data["removed"]["copy"] == 18 and sum(data["sources"].values()) == 135 + 18 + 4
    before = _report(finished_run)["data"]["splits"]
    assert [data["splits"][name]["films"] for name in before] == [count["films"] for count in before.values()]
    with open(run / "audit" / "manifest.csv", newline="") as file:
        manifest = list(csv.DictReader(file))
    assert {row["kept"] for row in manifest if row["split"] == "test"} == {"true"}
    assert sum(row["split"] == "covid" for row in manifest) == 4
    matrix = _report(run)["splits"]["covid"]["confusion_matrix"]
    assert (matrix["tp"] + matrix["fn"], matrix["tn"] + matrix["fp"]) == (4, 0)


def test_weights_of_a_run_that_saw_the_test_images_are_refused_and_the_flag_is_remembered(
    finished_run, image_folder, tmp_path
):
    flags = ("--split", "60/20/20", "--pretrained", finished_run, *QUICK, "--model", "resnet18")
    flags += ("--image_size", 64)
    with pytest.raises(UsageError, match="--allow_leakage"):
        _train(image_folder, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    _train(image_folder, tmp_path / "run", *flags, "--allow_leakage", "true")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["pneumonia"]
    assert config["leakage_allowed"] is True
    assert config["leakage"]["films_seen"] == _report(tmp_path / "run")["data"]["leakage"]["films_seen"] > 0


def test_a_recipe_with_seeds_is_a_run_for_each_and_a_summary(image_folder, tmp_path, capsys):
    _train(image_folder, tmp_path, *QUICK, "--seeds", 4, 9)
    summary = json.loads((tmp_path / "seeds.json").read_text())
    reports = [_report(tmp_path / name) for name in ("seed-4", "seed-9")]
    values = [report["splits"]["test"]["accuracy"]["value"] for report in reports]
    assert summary["splits"]["test"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert summary["splits"]["test"]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "2 seeds, mean ± sd" in capsys.readouterr().out
    assert not {"checks", "gate"} & reports[0].keys()  # left out by QUICK
    assert reports[0]["data"] == reports[1]["data"] and reports[0]["history"] != reports[1]["history"]

    with pytest.raises(UsageError) as error:
        _train(image_folder, tmp_path, *QUICK, "--seeds", 4, 9)
    assert error.value.code == "finished-run"
    (tmp_path / "seed-9" / "report.json").unlink()
    weights = (tmp_path / "seed-9" / "model.safetensors").rename(tmp_path / "before.safetensors")
    kept = (tmp_path / "seed-4" / "report.json").stat().st_mtime_ns
    resume = (*QUICK, "--seeds", 4, 9, "--resume_from_checkpoint")
    with pytest.raises(UsageError, match="^learning_rate: .*seed-4 has 0.001, this run 0.1") as error:
        _train(image_folder, tmp_path, *resume, "true", "--learning_rate", 0.1)
    assert error.value.code == "recipe-differs"
    _train(image_folder, tmp_path, *resume, "auto")
    assert (tmp_path / "seed-4" / "report.json").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "seeds.json").read_text()) == summary
    # The same seed gives the same model.
    assert (tmp_path / "seed-9" / "model.safetensors").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("checks", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_two_processes_train_and_score_every_image_once_as_one_process_does(image_folder, tmp_path, checks):
    run = tmp_path / "two"
    flags = (*QUICK, "--num_train_epochs", 2, "--checks", checks, "--per_device_eval_batch_size", 7)
    flags += ("--dataset", image_folder, "--output_dir", run, "--per_device_train_batch_size", 8)
    done = run_train(*flags, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1 and _report(run)["processes"] == 2

    cohort = prepare_cohort(str(image_folder), 32, tmp_path)
    rows = cohort.rows("test")
    assert [row["file"] for row in _predictions(run, "test")] == cohort.file[rows].tolist()
    model = AutoModelForImageClassification.from_pretrained(run)
    with torch.no_grad():
        alone = pneumonia_probability(score_images(model, cohort.cache, rows, batch_size=64))
    np.testing.assert_allclose(_probabilities(run), alone, atol=1e-5)
    # Both processes computed the metric that chose the epoch; one process gets the same for its weights.
    report = _report(run)
    scores = {epoch["epoch"]: epoch["validation"] for epoch in report["history"]}
    kept = scores[report["kept_epoch"]]
    assert kept["auroc_swapped"] == max(score["auroc_swapped"] for score in scores.values())
    assert report["splits"]["validation"]["auroc"]["value"] == pytest.approx(kept["auroc"])


@pytest.mark.parametrize(
    "file, flags, code",
    [
        ("report.json", (), "finished-run"),
        ("checkpoint-9/x", (), "unfinished-training"),
        ("model.safetensors", (), "existing-model"),
        ("model.safetensors", ("--resume_from_checkpoint", "auto"), "existing-model"),
        ("notes.txt", ("--resume_from_checkpoint", "true"), "checkpoint-not-found"),
        ("notes.txt", ("--resume_from_checkpoint", "/none"), "checkpoint-not-found"),
        ("notes.txt", ("--pretrained", "true"), "weights-unavailable"),
    ],
)
def test_an_unsuitable_run_folder_is_refused_and_not_changed(image_folder, tmp_path, file, flags, code):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as error:
        _train(image_folder, tmp_path, *QUICK, *flags)
    assert error.value.code == code
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting_leaves_nothing_of_the_old_run(finished_run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    (folder / "checkpoint-9").mkdir()
    (folder / "notes.txt").write_text("mine")
    train.clear_run_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_calibration_corrects_the_shift_of_balanced_classes(image_folder, tmp_path):
    flags = ("--imbalance", "weights", "--eval_strategy", "no", "--load_best_model_at_end", "false")
    _train(image_folder, tmp_path / "run", *QUICK, *flags)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["pneumonia"]
    assert config["intercept"] != 0
    # By maximum likelihood the mean probability is the prevalence, here 0.5: exactly so over the images and
    # their copies with swapped proportions.
    assert _probabilities(tmp_path / "run", "validation").mean() == pytest.approx(0.5, abs=0.02)
    assert _report(tmp_path / "run")["history"] == [] and _report(tmp_path / "run")["kept_epoch"] == 1


@pytest.mark.parametrize(
    "flags, code",
    [
        (("--model", "resnet999"), "unknown-architecture"),
        (("--model", "test_vit", "--image_size", 40), "unsupported-image-size"),
        (("--model", "test_vit3", "--small_epochs", 1, "--small_size", 40), "unsupported-image-size"),
    ],
)
def test_an_unsuitable_network_is_refused_before_the_images_are_read(tmp_path, monkeypatch, flags, code):
    monkeypatch.setattr(train, "prepare_cohort", None)
    with pytest.raises(UsageError) as error:
        _train(tmp_path / "images", tmp_path / "run", "--pretrained", "false", *flags)
    assert error.value.code == code


def test_one_command_starts_and_resumes_a_run(image_folder, tmp_path, monkeypatch):
    flags = (image_folder, tmp_path / "run", *QUICK, "--resume_from_checkpoint", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(train, "calibrate", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
        with pytest.raises(UsageError, match="16 images of 32 pixels.* --resume_from_checkpoint") as error:
            _train(*flags)
        assert error.value.code == "out-of-memory"
    weights = load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors")
    assert "conv1.0.weight" in weights
    assert not (tmp_path / "run" / "report.json").exists()
    _train(*flags)
    assert [epoch["epoch"] for epoch in _report(tmp_path / "run")["history"]] == [1]
    # Not trained again: these are the weights of the checkpoint, except for the head, which is calibrated.
    finished = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(finished["conv1.0.weight"], weights["conv1.0.weight"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_of_two_trainings_in_one_folder_the_second_is_an_error(image_folder, tmp_path):
    with run_folder.lock_run_folder(tmp_path / "run"):
        half_written = tmp_path / "run" / ".checkpoint-3-writing"
        half_written.mkdir()
        with pytest.raises(UsageError, match=str(tmp_path / "run")) as error:
            _train(image_folder, tmp_path / "run", *QUICK)
        assert error.value.code == "run-folder-locked"
        assert half_written.exists()
    (tmp_path / "run" / ".training.lock").touch()  # left by a killed process
    with run_folder.lock_run_folder(tmp_path / "run"):
        pass


def test_the_training_page_names_every_recipe_and_flag():
    page = (ROOT / "docs" / "training.md").read_text()
    assert all(path.name in page for path in (ROOT / "recipes").glob("*.yaml"))
    flags = {field.name for field in fields(Recipe)} - {field.name for field in fields(TrainingArguments)}
    assert not [flag for flag in flags if f"--{flag}" not in page]
