import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, metadata_load

from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.prediction import NOT_A_FILM
from hf_pneumonia.publishing.publish import prepare_run, publish_model, publish_space
from hf_pneumonia.publishing.space import space_files

ROOT = Path(__file__).parents[1]


@pytest.fixture
def space(tmp_path):
    """The Space's files, written out where nothing else of the project is."""
    folder = tmp_path / "space"
    for name, content in space_files("user/name").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copy(content, folder / name)
    return folder


def test_a_space_has_the_page_and_the_package_and_nothing_else(space):
    tracked = subprocess.run(["git", "ls-files", "hf_pneumonia"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout, which tells the package's files")
    sent = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert sent == {"README.md", "app.py", "requirements.txt", *tracked.stdout.split()}


def test_the_head_of_its_readme_names_the_model_and_the_gradio_that_runs_here(space):
    head = metadata_load(space / "README.md")
    assert head["sdk"] == "gradio" and head["sdk_version"] == version("gradio")
    assert head["app_file"] == "app.py" and head["models"] == ["user/name"]
    assert head["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_its_requirements_are_those_of_the_project_each_at_the_version_that_runs_here(space):
    lines = (space / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines)
    named = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in "#"]
    assert set(pinned) == {re.split(r"[~=<>!\[]", line)[0] for line in named} | {"torch", "torchvision"}
    assert all(version(name).split("+")[0] == number for name, number in pinned.items())


def test_a_space_that_was_fetched_from_the_hub_starts_alone_and_serves_its_model(
    finished_run, film_folder, local_hub, tmp_path
):
    api = HfApi(local_hub.url, token=local_hub.user("ann"))
    publish_model(api, finished_run, prepare_run(finished_run, "ann/x"), "ann/x")
    publish_space(api, "ann/x", "ann/demo")
    folder = Path(api.snapshot_download("ann/demo", repo_type="space", local_dir=tmp_path / "fetched"))
    film = next((film_folder / "test" / "PNEUMONIA").iterdir())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL_ID")},
        **local_hub.environment(None, tmp_path / "home"),
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }
    page = subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        address = next(found[0] for line in page.stdout if (found := re.search(r"http://\S+", line)))
        answer = Client(address, verbose=False).predict(handle_file(str(film)), api_name="/predict")
    finally:
        page.kill()
        page.wait()
    expected = PneumoniaClassifier.from_pretrained(finished_run)(film)
    assert answer["decision"] == expected.decision
    shown = None if expected.decision == NOT_A_FILM else pytest.approx(expected.probability, abs=1e-6)
    assert answer["probability"] == shown
