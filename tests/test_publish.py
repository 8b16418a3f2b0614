"""push_to_hub.py and what it publishes, against the Hub of tests/local_hub.py."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, constants, metadata_load
from safetensors.torch import load_file, save_file

import push_to_hub
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.hub import commit_files
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.prediction import NOT_A_FILM
from hf_pneumonia.publishing.contents import public_files
from hf_pneumonia.publishing.publish import (
    listing,
    prepare_run,
    publish_model,
    publish_space,
    space_files,
)

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


def test_a_run_and_its_space_are_published_once_and_then_have_not_changed(finished_run, local_hub, script):
    flags = (finished_run, "--repo", "ann/x", "--space", "ann/demo")
    (code, first, said), (again, second, _) = script(*flags), script(*flags)
    assert (code, again, said) == (0, 0, "")
    model, space = (local_hub.repositories[key] for key in (("model", "ann/x"), ("space", "ann/demo")))
    for repository, files in ((model, public_files(finished_run, "ann/x")), (space, space_files("ann/x"))):
        sent = {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in files.items()}
        assert _contents(repository) == sent
    assert len(model.messages) == len(space.messages) == 2  # the first is the Hub's own
    for kind, repository in (("ann/x", model), ("spaces/ann/demo", space)):
        address = f"{local_hub.url}/{kind}/commit/{repository.branches['main']}"
        assert f"published: {address}\n" in first
        assert f"nothing has changed: {address}\n" in second


@pytest.mark.slow
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


def _mistake(script, *flags: object) -> str:
    """The one line on a mistake, with exit code 2."""
    code, _, said = script(*flags)
    assert code == 2 and said.count("\n") == 1
    return said


def test_a_wrong_token_is_told_and_not_shown(finished_run, local_hub, script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = _mistake(script, finished_run, "--repo", "ann/x")
    assert "the token is not valid" in said and "hf_wrong" not in said and local_hub.repositories == {}


def test_what_is_no_finished_run_is_said_to_be_what_it_is(run_copy, tmp_path, script):
    seeds = tmp_path / "seeds"
    folders = ["seeds/seed-0", "seeds/seed-1", "begun/checkpoint-9", "somebodys/checkpoint-best"]
    for name in (*folders, "evaluation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "evaluation" / "report.json").write_text("{}")
    for name, problem in {
        "none": "no such folder",
        "somebodys": "report.json is missing",
        "begun": "not finished; go on with --resume_from_checkpoint",
        "seeds": f"choose one of {seeds / 'seed-0'}, {seeds / 'seed-1'}",
        "evaluation": "it has a report but no weights, as an evaluation has",
        "run/config.json": "it is a file",
    }.items():
        assert problem in _mistake(script, tmp_path / name, "--repo", "ann/x")


def test_damaged_weights_and_configs_are_refused(run_copy, script):
    weights, config = run_copy / "model.safetensors", run_copy / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert f"{run_copy} can't be published" in _mistake(script, run_copy, "--repo", "ann/x")
    weights.write_bytes(whole[:-1000] + bytes(1000))
    assert "model.safetensors is missing or damaged" in _mistake(script, run_copy, "--repo", "ann/x")
    weights.write_bytes(whole)
    for damaged in ("{", "{}"):
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


def test_what_comes_back_is_compared_by_its_answers(run_copy, finished_run, ann, local_hub):
    files = prepare_run(finished_run, "ann/x")
    tensors = load_file(run_copy / "model.safetensors")  # as if the run had been trained anew meanwhile
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    save_file(tensors, run_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="answers otherwise than .*; publish again"):
        publish_model(ann, run_copy, files, "ann/x")


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


def test_a_module_that_was_renamed_since_is_taken_out_of_the_space(ann, local_hub):
    old = {"hf_pneumonia/data/renamed.py": b"", "notes.txt": b"the owner's own"}
    commit_files(ann, "ann/demo", old, message="Before", repo_type="space")
    publish_space(ann, "ann/x", "ann/demo")
    there = local_hub.repositories["space", "ann/demo"].head
    assert there.keys() == {*space_files("ann/x"), "notes.txt", ".gitattributes"}


def test_a_space_has_the_page_and_the_package_and_what_they_need_pinned(tmp_path):
    files = space_files("user/name")
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_pneumonia").rglob("*.*")}
    package = {name for name in package if name.endswith((".py", ".css", ".js", ".html", ".md"))}
    assert files.keys() == {"README.md", "app.py", "requirements.txt", *package}
    (tmp_path / "README.md").write_bytes(files["README.md"])
    head = metadata_load(tmp_path / "README.md")
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", version("gradio"), "app.py")
    assert head["models"] == ["user/name"]
    assert head["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    pinned = dict(line.split("==") for line in files["requirements.txt"].decode().splitlines())
    named = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in "#"]
    assert set(pinned) == {re.split(r"[~=<>!\[]", line)[0] for line in named} | {"torch", "torchvision"}
    assert all(version(name).split("+")[0] == number for name, number in pinned.items())


@pytest.mark.slow
def test_a_space_that_was_fetched_from_the_hub_starts_alone_and_serves_its_model(
    finished_run, film_folder, ann, local_hub, tmp_path
):
    publish_model(ann, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")
    publish_space(ann, "ann/x", "ann/demo")
    folder = Path(ann.snapshot_download("ann/demo", repo_type="space", local_dir=tmp_path / "fetched"))
    film = next((film_folder / "test" / "PNEUMONIA").iterdir())
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL_ID")}
    environment = kept | local_hub.environment(None, tmp_path / "home")
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            address = next(found[0] for line in page.stdout if (found := re.search(r"http://\S+", line)))
            answer = Client(address, verbose=False).predict(handle_file(str(film)), api_name="/predict")
        finally:
            page.kill()
    expected = PneumoniaClassifier.from_pretrained(finished_run)(film)
    assert answer["decision"] == expected.decision
    shown = None if expected.decision == NOT_A_FILM else pytest.approx(expected.probability, abs=1e-6)
    assert answer["probability"] == shown
