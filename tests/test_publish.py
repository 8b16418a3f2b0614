"""push_to_hub.py and what it publishes, against the Hub of tests/local_hub.py."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

import push_to_hub
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.hub import commit_files
from hf_pneumonia.publishing.contents import public_files
from hf_pneumonia.publishing.publish import listing, prepare_run, publish_model, publish_space
from hf_pneumonia.publishing.space import space_files

# Importing anything of ours is an error: a published model is nothing but a timm checkpoint.
OTHER_TOOLS = """
import csv, json, sys
sys.modules["hf_pneumonia"] = None
import timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo, films = sys.argv[1:]
images = [Image.open(row["file"]).convert("RGB") for row in csv.DictReader(open(films))]

model = AutoModelForImageClassification.from_pretrained(repo).eval()
processor = AutoImageProcessor.from_pretrained(repo)
with torch.no_grad():
    logits = {"transformers": model(**processor(images)).logits}

network = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
with torch.no_grad():
    logits["timm"] = network(torch.stack([transform(image) for image in images]))

answers = pipeline("image-classification", model=repo)(images)
scores = [next(a["score"] for a in answer if a["label"] == "PNEUMONIA") for answer in answers]
print(json.dumps({**{k: v.softmax(1)[:, 1].tolist() for k, v in logits.items()}, "pipeline": scores}))
"""


@pytest.fixture
def ann(local_hub) -> HfApi:
    return HfApi(local_hub.url, local_hub.user("ann"))


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def script(local_hub, monkeypatch, capsys):
    """push_to_hub.py as ann: flags -> exit code, and what it printed."""
    address = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", local_hub.url + address)
    monkeypatch.setenv("HF_TOKEN", local_hub.user("ann"))

    def run(*flags: object) -> tuple[int, str, str]:
        code = run_script("push_to_hub.py", push_to_hub.main, [*map(str, flags)])
        return (code, *capsys.readouterr())

    return run


def _contents(repository) -> dict[str, bytes]:
    return {name: file.content for name, file in repository.head.items() if name != ".gitattributes"}


def _bytes(files: dict[str, Path | bytes]) -> dict[str, bytes]:
    return {
        name: content if isinstance(content, bytes) else content.read_bytes()
        for name, content in files.items()
    }


def test_a_run_and_its_space_are_published_once_and_then_have_not_changed(finished_run, local_hub, script):
    flags = (finished_run, "--repo", "ann/x", "--space", "ann/demo")
    (code, first, said), (again, second, _) = script(*flags), script(*flags)
    assert (code, again, said) == (0, 0, "")
    model, space = (local_hub.repositories[key] for key in (("model", "ann/x"), ("space", "ann/demo")))
    assert _contents(model) == _bytes(public_files(finished_run, "ann/x"))
    assert _contents(space) == _bytes(space_files("ann/x"))
    assert len(model.messages) == len(space.messages) == 2  # the first is the Hub's own
    for kind, repository in (("ann/x", model), ("spaces/ann/demo", space)):
        address = f"{local_hub.url}/{kind}/commit/{repository.branches['main']}"
        assert f"published: {address}\n" in first
        assert f"nothing has changed: {address}\n" in second


def test_other_peoples_tools_load_it_from_the_hub_and_give_trainings_own_answers(
    finished_run, ann, local_hub, tmp_path
):
    publish_model(ann, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")
    predictions = finished_run / "predictions_test.csv"
    environment = {**os.environ, **local_hub.environment(None, tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_TOOLS, "ann/x", predictions],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(predictions, newline="") as file:
        expected = [float(row["probability"]) for row in csv.DictReader(file)]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(expected) == 30 and answers.keys() == {"transformers", "timm", "pipeline"}
    for tool, probabilities in answers.items():
        np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=tool)


def test_a_dry_run_shows_the_same_table_and_asks_nobody(finished_run, local_hub, script):
    code, said, complaint = script(finished_run, "--repo", "ann/x", "--space", "ann/demo", "--dry_run")
    assert (code, complaint) == (0, "")
    for files in (public_files(finished_run, "ann/x"), space_files("ann/x")):
        assert "\n".join(listing(files)) in said
    assert local_hub.requests == []


def test_the_table_gives_each_file_or_a_folder_of_many_and_their_sum(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(44_812_345))
    package = {f"package/{number}.py": bytes(10) for number in range(30)}
    files = {**package, "model.safetensors": tmp_path / "weights", "a": bytes(999), "b.json": bytes(1000)}
    assert listing(files) == [
        "  a                       999 B",
        "  b.json                 1.0 kB",
        "  model.safetensors     44.8 MB",
        "  package/ (30 files)     300 B",
        "  total of 33 files     44.8 MB",
    ]


def test_a_wrong_token_is_one_line_and_exit_code_2(finished_run, local_hub, script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, _, said = script(finished_run, "--repo", "ann/x")
    assert code == 2 and said.count("\n") == 1 and "the token is not valid" in said
    assert "hf_wrong" not in said and local_hub.repositories == {}


def _mistake(script, *flags: object) -> str:
    """What is said of a mistake that is found before anybody is asked."""
    code, _, said = script(*flags)
    assert code == 2 and said.count("\n") == 1
    return said


def test_what_is_no_finished_run_is_said_to_be_what_it_is(run_copy, tmp_path, script):
    seeds = tmp_path / "seeds"
    for seed in (0, 1):
        (seeds / f"seed-{seed}").mkdir(parents=True)
    (seeds / "seeds.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "somebodys" / "checkpoint-best").mkdir(parents=True)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "report.json").write_text("{}")
    for name, problem in (
        ("none", "no such folder"),
        ("empty", "report.json is missing"),
        ("somebodys", "report.json is missing"),
        ("begun", "not finished; go on with --resume_from_checkpoint"),
        ("seeds", f"choose one of {seeds / 'seed-0'}, {seeds / 'seed-1'}"),
        ("evaluation", "it has a report but no weights, as an evaluation has"),
        ("run/config.json", "it is a file"),
    ):
        assert problem in _mistake(script, tmp_path / name, "--repo", "ann/x")


def test_damaged_weights_and_configs_are_refused(run_copy, script):
    weights, config = run_copy / "model.safetensors", run_copy / "config.json"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:1000], whole[:-1]):
        weights.write_bytes(damaged)
        assert f"{run_copy} can't be published" in _mistake(script, run_copy, "--repo", "ann/x")
    weights.write_bytes(whole)
    for damaged in ("", "{", "{}"):
        config.write_text(damaged)
        assert f"{run_copy} can't be published" in _mistake(script, run_copy, "--repo", "ann/x")


def test_names_and_flags_that_do_not_fit_are_refused(finished_run, script):
    assert "USER/NAME, got 'x'" in _mistake(script, finished_run, "--repo", "x")
    assert "USER/NAME, got 'y'" in _mistake(script, finished_run, "--repo", "ann/x", "--space", "y")
    flags = ("--repo", "ann/x", "--space", "ann/y", "--revision", "v2")
    assert "leave out --revision or --space" in _mistake(script, finished_run, *flags)


def test_a_private_run_and_its_space_are_seen_by_nobody_else_unless_the_space_is_public(
    finished_run, local_hub, script
):
    code, said, _ = script(finished_run, "--repo", "ann/x", "--space", "ann/demo", "--private")
    assert code == 0 and "ann/x is private: the Space reads it by a token" in said
    assert [repository.private for repository in local_hub.repositories.values()] == [True, True]
    _, said, _ = script(finished_run, "--repo", "ann/x", "--space", "ann/open")
    assert "everybody can see ann/open, and ask the private ann/x there" in said


def test_a_branch_of_its_own_leaves_main_as_it_is(finished_run, ann, local_hub):
    files = prepare_run(finished_run, "ann/x")
    commit = publish_model(ann, finished_run, files, "ann/x", revision="trial")
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.branches["trial"] == commit.sha and _contents(repository) == {}


def _other_weights(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    save_file(tensors, run / "model.safetensors", {"format": "pt"})


def test_what_comes_back_is_compared_by_its_answers(run_copy, finished_run, ann, local_hub):
    files = prepare_run(finished_run, "ann/x")
    _other_weights(run_copy)  # as if the run had been trained anew meanwhile
    with pytest.raises(UsageError, match="answers otherwise than .*; publish again"):
        publish_model(ann, run_copy, files, "ann/x")


def test_weights_that_the_report_does_not_speak_of_are_not_published(run_copy):
    weights = bytearray((run_copy / "model.safetensors").read_bytes())
    weights[-1000:] = bytes(1000)
    (run_copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(UsageError, match="model.safetensors is missing or damaged, or not the one"):
        prepare_run(run_copy, "ann/x")


def test_a_check_that_fails_says_that_the_run_is_on_the_hub(finished_run, ann, local_hub, monkeypatch):
    def lose(*_, **__):
        raise UsageError("the connection failed")

    monkeypatch.setattr("hf_pneumonia.publishing.publish.download_files", lose)
    with pytest.raises(
        UsageError, match=f"sent as {local_hub.url}/ann/x/commit/.*, but not checked: the conn"
    ):
        publish_model(ann, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")


def test_of_files_of_others_those_that_loaders_would_read_go_and_pickles_are_warned_about(
    finished_run, ann, local_hub, caplog
):
    foreign = ("pytorch_model.bin", "sub/last.ckpt", "notes.md")
    read_along = ("preprocessor_config.json", ".eval_results/other.yaml")
    commit_files(ann, "ann/x", {name: b"{}" for name in (*foreign, *read_along)}, message="Another model")
    publish_model(ann, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")
    warned = [record.getMessage().split(",")[0] for record in caplog.records if "hf_pneumonia" in record.name]
    assert warned == ["ann/x also holds pytorch_model.bin", "ann/x also holds sub/last.ckpt"]
    there = _contents(local_hub.repositories["model", "ann/x"])
    assert set(foreign) <= there.keys() and not set(read_along) & there.keys()


def test_a_space_is_made_anew_only_where_it_changed(ann, local_hub):
    first = publish_space(ann, "ann/x", "ann/demo")
    assert first.changed and not publish_space(ann, "ann/x", "ann/demo").changed
    assert local_hub.repositories["space", "ann/demo"].messages[first.sha] == "Serve ann/x"


def test_a_module_that_was_renamed_since_is_taken_out_of_the_space(ann, local_hub):
    old = {"hf_pneumonia/data/renamed.py": b"", "notes.txt": b"the owner's own"}
    commit_files(ann, "ann/demo", old, message="Before", repo_type="space")
    publish_space(ann, "ann/x", "ann/demo")
    there = local_hub.repositories["space", "ann/demo"].head
    assert there.keys() == {*space_files("ann/x"), "notes.txt", ".gitattributes"}


def test_the_table_is_of_the_folder_that_was_named_however_it_is_written(run_copy, monkeypatch):
    monkeypatch.chdir(run_copy)
    assert prepare_run(Path("."), "ann/x").keys() == prepare_run(run_copy, "ann/x").keys()
