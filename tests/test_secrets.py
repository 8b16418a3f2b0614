"""A token that the environment or the command line holds stays there."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, TINY

TOKENS = {
    "HF_TOKEN": "hf_" + "Environment" * 3,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "OlderName" * 4,
    "WANDB_API_KEY": "wandb" + "Key0123456789" * 3,
    "KAGGLE_KEY": "kaggle" + "Key9876543210" * 3,
}
GIVEN = {"--hub_token": "hf_" + "CommandLine" * 3}


# train.py, but that it leaves its checkpoints behind.
KEEPING = """
import sys
import hf_pneumonia.training.run_folder as run_folder
run_folder._drop_checkpoints = lambda folder: None
import train
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def run(film_folder, tmp_path_factory):
    """A run with tokens in every place where they may be, its checkpoints kept; and what it said."""
    folder = tmp_path_factory.mktemp("secret") / "run"
    flags = ["--dataset", film_folder, "--output_dir", folder, *TINY, "--num_train_epochs", 1]
    flags += ["--cache_dir", folder.parent / "cache", *(part for pair in GIVEN.items() for part in pair)]
    done = subprocess.run(
        [sys.executable, "-c", KEEPING, *map(str, flags)],
        capture_output=True, text=True, timeout=300, env={**os.environ, **TOKENS}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def _letters() -> list[bytes]:
    """Of each token what no other text has, in the encodings that a pickle and a document of the net use."""
    secrets = [secret[4:] for secret in (*TOKENS.values(), *GIVEN.values())]
    return [form for secret in secrets for form in (secret.encode(), secret.encode("utf-16-le"))]


def test_no_byte_of_a_run_and_of_its_cache_has_a_token(run):
    folder, _ = run
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert len(files) > 20 and any(path.parent.name.startswith("checkpoint-") for path in files)
    found = [(path, letters) for path in files for letters in _letters() if letters in path.read_bytes()]
    assert found == []


def test_nothing_that_a_run_says_has_a_token(run):
    assert not [letters for letters in _letters() if letters in run[1].encode()]


@pytest.mark.parametrize(
    "flags",
    [
        ["--hub_token", GIVEN["--hub_token"], "--image_size", "5"],
        ["--hub_token", GIVEN["--hub_token"], "--no_such_flag"],
        [f"--push_to_hub_token={GIVEN['--hub_token']}"],
        ["--push_to_hub", "true", "--hub_token", GIVEN["--hub_token"]],
    ],
)
def test_a_mistake_beside_a_token_is_told_without_it(flags):
    command = [sys.executable, ROOT / "train.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **TOKENS})
    assert done.returncode == 2
    assert not [letters for letters in _letters() if letters in (done.stdout + done.stderr).encode()]


def test_what_is_published_of_that_run_has_no_token_and_no_name_of_a_film(run, film_folder):
    from hf_pneumonia.publishing.contents import public_files

    folder, _ = run
    contents = public_files(folder, "user/name")
    names = [path.stem.encode() for path in film_folder.rglob("*.jpeg")]
    assert len(names) > 100
    for place, content in contents.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert not [letters for letters in (*_letters(), *names) if letters in data], place
