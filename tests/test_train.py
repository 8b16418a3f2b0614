"""train.py from end to end: what it leaves, who can load it, and what it says to a mistake."""

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY, TORCHRUN, run_train, write_films
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainingArguments

import train
from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.evaluation.metrics import METRICS, figures_line, score_predictions
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films
from hf_pneumonia.training import run_folder
from hf_pneumonia.training.arguments import Recipe

# Run where the package can't be imported by accident: answers must not depend on any code of ours.
OTHER_TOOLS = """
import csv, json, sys
import timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

run = sys.argv[1]
rows = csv.DictReader(open(f"{run}/predictions_test.csv"))
images = [Image.open(row["file"]).convert("RGB") for row in rows]

model = AutoModelForImageClassification.from_pretrained(run).eval()
processor = AutoImageProcessor.from_pretrained(run)
with torch.no_grad():
    logits = {"transformers": model(**processor(images)).logits}

network = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
with torch.no_grad():
    logits["timm"] = network(torch.stack([transform(image) for image in images]))

answers = pipeline("image-classification", model=run)(images)
scores = [next(a["score"] for a in answer if a["label"] == "PNEUMONIA") for answer in answers]
assert not any(name.startswith("hf_pneumonia") for name in sys.modules)
print(json.dumps({
    **{name: value.softmax(1)[:, 1].tolist() for name, value in logits.items()},
    "pipeline": scores,
    "labels": model.config.id2label,
    "pneumonia": model.config.pneumonia,
}))
"""


# A training of seconds, where it matters not what it learns.
QUICK = (
    "--image_size", 32, "--model", "resnet10t", "--num_train_epochs", 1, "--per_device_train_batch_size", 16,
    "--learning_rate", 1e-3, "--bf16", "false", "--checks", "false", "--ood", "false",
)  # fmt: skip


def _train(films: Path, run: Path, *flags: object) -> None:
    train.main([*map(str, ("--dataset", films, "--output_dir", run, *flags))])


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


def test_the_network_learns_what_the_films_show(finished_run):
    assert _report(finished_run)["splits"]["test"]["auroc"]["value"] > 0.9


def test_every_published_figure_follows_from_the_predictions(finished_run):
    report = _report(finished_run)
    for split in ("validation", "test"):
        labels = [int(row["label"] == "PNEUMONIA") for row in _predictions(finished_run, split)]
        scores = score_predictions(labels, _probabilities(finished_run, split))
        found = report["splits"][split]
        assert {name: found[name]["value"] for name in METRICS} == pytest.approx(
            {name: scores[name] for name in METRICS}
        )
        assert found["confusion_matrix"] == scores["confusion_matrix"]
        for name in METRICS:
            low, high = found[name]["ci95"] or (0, 1)
            assert low <= found[name]["value"] <= high
    assert set(report["splits"]["train"]) == set(report["splits"]["test"])


def test_the_report_says_how_the_figures_were_made(finished_run, film_folder):
    report = _report(finished_run)
    assert report["seed"] == 42 and {"torch", "timm", "transformers", "python"} <= report["versions"].keys()
    assert report["data"]["splits"]["train"]["films"] == 85 and not report["data"]["simulated"]
    assert [epoch["epoch"] for epoch in report["history"]] == [1, 2, 3]
    assert yaml.safe_load((finished_run / "recipe.yaml").read_text()) == report["recipe"]


def test_the_test_predictions_are_the_test_folder_and_nothing_else(finished_run, film_folder):
    files = [row["file"] for row in _predictions(finished_run, "test")]
    assert sorted(files) == sorted(str(path) for path in (film_folder / "test").glob("*/*"))
    assert {row["patient_id"] for row in _predictions(finished_run, "test")}.isdisjoint(
        row["patient_id"] for row in _predictions(finished_run, "validation")
    )


def test_other_peoples_tools_load_the_folder_and_give_trainings_own_answers(finished_run, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_TOOLS, str(finished_run)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for tool in ("transformers", "timm", "pipeline"):
        np.testing.assert_allclose(answers[tool], _probabilities(finished_run), atol=1e-5, err_msg=tool)
    assert answers["labels"] == {"0": "NORMAL", "1": "PNEUMONIA"}
    assert answers["pneumonia"]["threshold"] == _report(finished_run)["operating_point"]["threshold"]
    points = answers["pneumonia"]["operating_points"]
    assert {name: point["threshold"] for name, point in points.items()} == {
        name: point["threshold"] for name, point in _report(finished_run)["operating_points"].items()
    }


def test_the_operating_point_reaches_its_sensitivity_on_validation(finished_run):
    point = _report(finished_run)["operating_point"]
    labels = np.array([row["label"] == "PNEUMONIA" for row in _predictions(finished_run, "validation")])
    found = _probabilities(finished_run, "validation")[labels] >= point["threshold"]
    assert (
        np.mean(found) == pytest.approx(point["sensitivity"])
        and np.mean(found) >= point["target_sensitivity"]
    )


def test_a_person_sees_one_line_per_epoch_the_figures_and_what_to_do_next(finished_run):
    output = (finished_run.parent / "output.txt").read_text()
    assert [line.split()[1] for line in output.splitlines() if line.startswith("epoch")] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    audit = finished_run / "audit" / "audit.html"
    assert "appearance alone predicts the label with AUROC 1.000" in output and f"; see {audit}\n" in output
    assert "30 test films: AUROC" in output and "95% sensitive on validation: sensitivity" in output
    swapped = _report(finished_run)["checks"]["appearance"]["proportions"]["1.2"]
    assert f"proportions swapped by 1.2: {figures_line(swapped, list(swapped))}" in output
    assert f"run folder: {finished_run}" in output
    assert f"app.py --model {finished_run}" in output and f"push_to_hub.py {finished_run}" in output


@pytest.fixture(scope="module")
def merged_run(film_folder, tmp_path_factory):
    """Trained on the folder, and on a second one with 12 of its training films and 6 of its test films, all
    enlarged and renamed, and 4 films of COVID-19."""
    folder, run = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("runs") / "merged"
    for label in ("NORMAL", "PNEUMONIA"):
        for split, count in (("train", 6), ("test", 3)):
            for number, path in enumerate(sorted((film_folder / split / label).iterdir())[:count]):
                film = Image.open(path)
                copy = folder / label / f"{split}{number}.png"
                copy.parent.mkdir(exist_ok=True)
                film.resize((2 * film.width, 2 * film.height)).save(copy)
    write_films(folder, 4, 0, first=900, names=("COVID-19", ""))
    flags = ("--dataset", film_folder, folder, "--covid", "keep", "--output_dir", run, *QUICK)
    train.main([*map(str, flags)])
    return run


def test_copies_in_a_second_source_are_removed_and_reported(merged_run, finished_run):
    data = _report(merged_run)["data"]
    assert data["removed"]["copy"] == 18 and sum(data["sources"].values()) == 135 + 18 + 4
    before = _report(finished_run)["data"]["splits"]
    assert [data["splits"][name]["films"] for name in before] == [count["films"] for count in before.values()]
    assert {row["kept"] for row in _manifest(merged_run) if row["split"] == "test"} == {"true"}


def _manifest(run: Path) -> list[dict]:
    with open(run / "audit" / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_films_of_covid_that_are_kept_are_scored_and_nothing_else(merged_run):
    report = _report(merged_run)
    matrix = report["splits"]["covid"]["confusion_matrix"]
    assert (matrix["tp"] + matrix["fn"], matrix["tn"] + matrix["fp"]) == (4, 0)
    assert sum(row["split"] == "covid" for row in _manifest(merged_run)) == 4


def test_weights_of_a_run_that_saw_the_test_films_are_refused_and_the_flag_is_remembered(
    finished_run, film_folder, tmp_path
):
    flags = ("--split", "60/20/20", "--pretrained", finished_run, *QUICK, "--model", "resnet18")
    flags += ("--image_size", 64)
    with pytest.raises(UsageError, match="leakage is left"):
        _train(film_folder, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    _train(film_folder, tmp_path / "run", *flags, "--allow_leakage", "true")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["pneumonia"]
    assert config["leakage_allowed"] is True
    assert config["leakage"]["films_seen"] == _report(tmp_path / "run")["data"]["leakage"]["films_seen"] > 0


def test_the_same_seed_gives_the_same_model(finished_run, film_folder, tmp_path):
    """The checks and the statistics that are left out touch no weight and no figure."""
    _train(film_folder, tmp_path / "again", *TINY, "--checks", "false", "--ood", "false")
    first, second = _report(finished_run), _report(tmp_path / "again")
    assert first["splits"] == second["splits"] and first["history"] == second["history"]
    weights = [(run / "model.safetensors").read_bytes() for run in (tmp_path / "again", finished_run)]
    assert weights[0] == weights[1]
    left_out = {"checks", "gate", "gate_sha256"}
    assert first.keys() - second.keys() == left_out
    assert not {"errors", "gate.safetensors"} & {path.name for path in (tmp_path / "again").iterdir()}


def test_a_recipe_over_seeds_is_a_run_for_each_with_mean_and_spread(film_folder, tmp_path, capsys):
    _train(film_folder, tmp_path / "alone", *QUICK, "--seed", 4)
    _train(film_folder, tmp_path, *QUICK, "--seeds", 4, 9)
    spread = json.loads((tmp_path / "seeds.json").read_text())
    reports = [_report(tmp_path / name) for name in ("seed-4", "seed-9")]
    values = [report["splits"]["test"]["accuracy"]["value"] for report in reports]
    assert spread["splits"]["test"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert spread["splits"]["test"]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "2 seeds, mean ± sd" in capsys.readouterr().out
    for name in ("model.safetensors", "recipe.yaml"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("alone", "seed-4"))
        assert one == other
    assert reports[0]["data"] == reports[1]["data"] and reports[0]["history"] != reports[1]["history"]

    with pytest.raises(UsageError, match="already holds a finished run"):
        _train(film_folder, tmp_path, *QUICK, "--seeds", 4, 9)
    (tmp_path / "seed-9" / "report.json").unlink()
    (tmp_path / "seed-9" / "model.safetensors").unlink()
    kept = (tmp_path / "seed-4" / "report.json").stat().st_mtime_ns
    go_on = (*QUICK, "--seeds", 4, 9, "--resume_from_checkpoint")
    with pytest.raises(UsageError, match="seed-4 was trained with learning_rate 0.001 and not 0.1"):
        _train(film_folder, tmp_path, *go_on, "true", "--learning_rate", 0.1)
    _train(film_folder, tmp_path, *go_on, "auto")
    assert (tmp_path / "seed-4" / "report.json").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "seeds.json").read_text()) == spread


def test_two_processes_train_and_score_every_film_once_as_one_process_does(film_folder, tmp_path):
    run = tmp_path / "two"
    flags = (*QUICK, "--num_train_epochs", 3, "--checks", "true", "--per_device_eval_batch_size", 7)
    flags += ("--dataset", film_folder, "--output_dir", run, "--per_device_train_batch_size", 8)
    done = run_train(*flags, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1 and _report(run)["processes"] == 2

    films = prepare_films(str(film_folder), 32, tmp_path)
    rows = films.rows("test")
    assert [row["file"] for row in _predictions(run, "test")] == films.file[rows].tolist()
    model = AutoModelForImageClassification.from_pretrained(run)
    with torch.no_grad():
        alone = pneumonia_probability(score_films(model, films.store, rows, batch_size=64))
    np.testing.assert_allclose(_probabilities(run), alone, atol=1e-5)
    # The epoch was chosen by a score of both processes; one process finds the same for the weights kept.
    best = max(epoch["validation"]["auroc_swapped"] for epoch in _report(run)["history"])
    (kept,) = [e["validation"] for e in _report(run)["history"] if e["epoch"] == _report(run)["kept_epoch"]]
    assert kept["auroc_swapped"] == best
    assert _report(run)["splits"]["validation"]["auroc"]["value"] == pytest.approx(kept["auroc"])


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path, capsys):
    flags = ["--dataset", str(tmp_path / "none"), "--output_dir", str(tmp_path / "run")]
    assert run_script("train.py", train.main, flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith("train.py: --dataset expects")
    assert "Traceback" not in said.err and not (tmp_path / "run").exists()


def _other_peoples_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"theirs")


@pytest.mark.parametrize(
    "prepare, flags, message",
    [
        (lambda folder: (folder / "report.json").write_text("{}"), (), "already holds a finished run"),
        (lambda folder: (folder / "checkpoint-9").mkdir(), (), "unfinished run.*--resume_from_checkpoint"),
        (_other_peoples_model, (), "already holds a model"),
        (_other_peoples_model, ("--resume_from_checkpoint", "auto"), "already holds a model"),
        (lambda _: None, ("--resume_from_checkpoint", "true"), "no checkpoint in"),
        (lambda _: None, ("--resume_from_checkpoint", "/none"), "expects true, auto or a"),
        (lambda _: None, ("--pretrained", "true"), "--pretrained true"),  # it can't be fetched
    ],
)
def test_a_run_folder_that_does_not_suit_is_refused_and_left_alone(
    film_folder, tmp_path, prepare, flags, message
):
    prepare(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match=message):
        _train(film_folder, tmp_path, *QUICK, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_overwriting_leaves_nothing_of_the_old_run(finished_run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    (folder / "checkpoint-9").mkdir()
    (folder / "notes.txt").write_text("mine")
    train.clear_run_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_training_that_diverges_says_so(film_folder, tmp_path):
    flags = ("--learning_rate", 1000, "--lr_scheduler_type", "constant", "--max_grad_norm", 0)
    with pytest.raises(UsageError, match="diverged.*lower --learning_rate"):
        _train(film_folder, tmp_path / "run", *QUICK, "--num_train_epochs", 3, *flags)


def test_a_run_that_balanced_the_classes_has_the_shift_mended(film_folder, tmp_path):
    _train(film_folder, tmp_path / "run", *QUICK, "--imbalance", "weights")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["pneumonia"]
    assert config["intercept"] != 0
    # By maximum likelihood the mean probability is the share of pneumonias, here one in two: exactly so over
    # the images and their copies with swapped proportions.
    assert _probabilities(tmp_path / "run", "validation").mean() == pytest.approx(0.5, abs=0.02)


def test_a_run_without_validation_by_epoch_still_finishes(film_folder, tmp_path):
    flags = ("--eval_strategy", "no", "--load_best_model_at_end", "false")
    _train(film_folder, tmp_path / "run", *QUICK, *flags)
    assert _report(tmp_path / "run")["history"] == [] and _report(tmp_path / "run")["kept_epoch"] == 1


def test_a_disk_too_small_for_the_checkpoints_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50e6))
    with pytest.raises(UsageError, match="no space left for checkpoints .447 MB needed, 50 MB free."):
        run_folder.check_free_space(tmp_path, 44_700_000)


def test_an_interrupted_run_starts_and_goes_on_by_one_command(film_folder, tmp_path, monkeypatch):
    flags = (film_folder, tmp_path / "run", *QUICK, "--resume_from_checkpoint", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(train, "calibrate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _train(*flags)
    weights = load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors")
    assert "conv1.0.weight" in weights
    assert not (tmp_path / "run" / "report.json").exists()
    _train(*flags)
    assert [epoch["epoch"] for epoch in _report(tmp_path / "run")["history"]] == [1]
    # Not trained anew: but for the head, which is calibrated, these are the weights of the checkpoint.
    finished = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(finished["conv1.0.weight"], weights["conv1.0.weight"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_of_two_trainings_in_one_folder_the_second_is_an_error(film_folder, tmp_path):
    with run_folder.only_training(tmp_path / "run"):
        half_written = tmp_path / "run" / ".checkpoint-3-writing"
        half_written.mkdir()
        with pytest.raises(UsageError, match=f"another training is writing {tmp_path / 'run'};"):
            _train(film_folder, tmp_path / "run", *QUICK)
        assert half_written.exists()
    (tmp_path / "run" / ".training.lock").touch()  # as one that was killed leaves it
    with run_folder.only_training(tmp_path / "run"):
        pass


def test_what_another_training_finished_while_this_one_read_films_is_not_lost(
    film_folder, tmp_path, monkeypatch
):
    @contextmanager
    def late(folder):
        (folder / "report.json").write_text("{}")
        yield

    monkeypatch.setattr(train, "only_training", late)
    with pytest.raises(UsageError, match="already holds a finished run"):
        _train(film_folder, tmp_path / "run", *QUICK)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.json"]


def test_the_readme_names_every_recipe_and_flag():
    readme = (ROOT / "README.md").read_text()
    assert all(path.name in readme for path in (ROOT / "recipes").glob("*.yaml"))
    flags = Recipe.__annotations__.keys() - TrainingArguments.__annotations__.keys()
    assert not [flag for flag in flags if f"--{flag}" not in readme]
