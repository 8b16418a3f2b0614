"""push_to_hub.py against the local Hub of local_hub.py."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, metadata_load
from safetensors.torch import load_file, save_file

import push_to_hub
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.hub import commit_files
from hf_pneumonia.inference.classifier import NOT_A_CHEST_XRAY, PneumoniaClassifier
from hf_pneumonia.publishing.publish import (
    listing,
    prepare_run,
    public_files,
    publish_model,
    publish_space,
    space_files,
)


@pytest.fixture
def ann(local_hub) -> HfApi:
    return HfApi(local_hub.url, local_hub.user("ann"))


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def script(local_hub, monkeypatch, capsys, tmp_path):
    """Run push_to_hub.py as user ann: flags -> exit code, stdout, stderr."""
    local_hub.is_the_hub(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", local_hub.user("ann"))

    def run(*flags: object) -> tuple[int, str, str]:
        code = run_script("push_to_hub.py", push_to_hub.main, [*map(str, flags)])
        return (code, *capsys.readouterr())

    return run


def test_a_run_and_its_space_are_published_once_and_then_unchanged(finished_run, local_hub, script):
    old = {"hf_pneumonia/data/renamed_since.py": b""}
    commit_files(HfApi(), "ann/demo", old, message="Before", repo_type="space")
    flags = (finished_run, "--repo", "ann/x", "--space", "ann/demo")
    (code, first, stderr), (again, second, _) = script(*flags), script(*flags)
    assert (code, again, stderr) == (0, 0, "")
    model, space = (local_hub.repositories[key] for key in (("model", "ann/x"), ("space", "ann/demo")))
    for repository, files in ((model, public_files(finished_run, "ann/x")), (space, space_files("ann/x"))):
        sent = {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in files.items()}
        assert repository.contents() == sent
    # The first commit is made by the Hub.
    assert len(model.messages) == 2 and len(space.messages) == 3 and space.sdk == "gradio"
    for kind, repository in (("ann/x", model), ("spaces/ann/demo", space)):
        address = f"{local_hub.url}/{kind}/commit/{repository.branches['main']}"
        assert f"published: {address}\n" in first
        assert f"unchanged: {address}\n" in second


def test_a_dry_run_lists_the_files_without_any_request(finished_run, local_hub, script):
    code, stdout, stderr = script(finished_run, "--repo", "ann/x", "--space", "ann/demo", "--dry_run")
    assert (code, stderr) == (0, "")
    for files in (public_files(finished_run, "ann/x"), space_files("ann/x")):
        assert "\n".join(listing(files)) in stdout
    assert local_hub.requests == []


def _mistake(script, *flags: object) -> str:
    """Return the one-line message of a mistake, which exits with code 2."""
    code, _, stderr = script(*flags)
    assert code == 2 and stderr.count("\n") == 1
    return stderr


def test_a_folder_without_a_finished_run_is_refused_with_the_reason(tmp_path, script):
    seeds = tmp_path / "seeds"
    for name in ("seeds/seed-0", "seeds/seed-1", "begun/checkpoint-9", "other", "evaluation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "evaluation" / "report.json").write_text("{}")
    for name, problem in {
        "none": "no such folder",
        "other": "report.json is missing",
        "begun": "--resume_from_checkpoint",
        "seeds": f"{seeds / 'seed-0'}, {seeds / 'seed-1'}",
        "evaluation": "no weights",
    }.items():
        message = _mistake(script, tmp_path / name, "--repo", "ann/x")
        assert problem in message and "[not-a-finished-run]" in message


def test_damaged_weights_are_refused(run_copy, script):
    weights = run_copy / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:-1000] + bytes(1000)):
        weights.write_bytes(damaged)
        assert str(run_copy) in _mistake(script, run_copy, "--repo", "ann/x")


def test_a_space_of_a_branch_is_refused(finished_run, script):
    flags = ("--repo", "ann/x", "--space", "ann/y", "--revision", "v2")
    assert "[space-needs-main]" in _mistake(script, finished_run, *flags)


def test_a_private_model_has_a_private_space_and_a_public_space_is_warned_of(finished_run, local_hub, script):
    code, stdout, _ = script(finished_run, "--repo", "ann/x", "--space", "ann/demo", "--private")
    assert code == 0 and "HF_TOKEN in the settings of ann/demo" in stdout
    assert [repository.private for repository in local_hub.repositories.values()] == [True, True]
    _, stdout, _ = script(finished_run, "--repo", "ann/x", "--space", "ann/open")
    assert "ann/open is public" in stdout


def test_the_downloaded_model_is_compared_by_its_predictions(run_copy, finished_run, ann, local_hub):
    files = prepare_run(finished_run, "ann/x")
    tensors = load_file(run_copy / "model.safetensors")  # as if the run had been trained again meanwhile
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    save_file(tensors, run_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError) as error:
        publish_model(ann, run_copy, files, "ann/x")
    assert error.value.code == "published-model-differs"


def test_other_files_that_loaders_read_are_deleted_and_pickles_are_warned_of(
    finished_run, ann, local_hub, caplog
):
    foreign = ("pytorch_model.bin", "sub/last.ckpt", "notes.md")
    read_along = ("preprocessor_config.json", ".eval_results/other.yaml")
    commit_files(ann, "ann/x", {name: b"{}" for name in (*foreign, *read_along)}, message="Another model")
    publish_model(ann, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")
    warned = [record.getMessage().split(",")[0] for record in caplog.records if "hf_pneumonia" in record.name]
    assert warned == ["ann/x: also contains pytorch_model.bin", "ann/x: also contains sub/last.ckpt"]
    there = local_hub.repositories["model", "ann/x"].contents()
    assert set(foreign) <= there.keys() and not set(read_along) & there.keys()


def test_a_space_has_the_app_the_package_and_pinned_requirements(tmp_path):
    files = space_files("user/name")
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_pneumonia").rglob("*.*")}
    package = {name for name in package if name.endswith((".py", ".css", ".js", ".html", ".md"))}
    assert files.keys() == {"README.md", "app.py", "requirements.txt", *package}
    (tmp_path / "README.md").write_bytes(files["README.md"])
    head = metadata_load(tmp_path / "README.md")
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", version("gradio"), "app.py")
    assert head["models"] == ["user/name"]
    # The Hub refuses other values.
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {head["colorFrom"], head["colorTo"]} <= colours and len(head["short_description"]) <= 60
    assert head["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    pinned = dict(line.split("==") for line in files["requirements.txt"].decode().splitlines())
    named = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in "#"]
    assert set(pinned) == {re.split(r"[~=<>!\[]", line)[0] for line in named} | {"torch", "torchvision"}
    assert all(version(name).split("+")[0] == number for name, number in pinned.items())


@pytest.mark.slow
def test_a_space_downloaded_from_the_hub_runs_alone_and_serves_its_model(
    finished_run, image_folder, ann, local_hub, tmp_path
):
    publish_model(ann, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")
    publish_space(ann, "ann/x", "ann/demo")
    folder = Path(ann.snapshot_download("ann/demo", repo_type="space", local_dir=tmp_path / "fetched"))
    image = next((image_folder / "test" / "PNEUMONIA").iterdir())
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL_ID")}
    environment = kept | {"HF_ENDPOINT": local_hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            address = next(found[0] for line in page.stdout if (found := re.search(r"http://\S+", line)))
            answer = Client(address, verbose=False).predict(handle_file(str(image)), api_name="/predict")
        finally:
            page.kill()
    expected = PneumoniaClassifier.from_pretrained(finished_run)(image)
    assert answer["decision"] == expected.decision
    shown = None if expected.decision == NOT_A_CHEST_XRAY else pytest.approx(expected.probability, abs=1e-6)
    assert answer["probability"] == shown
