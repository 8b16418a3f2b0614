"""Tokens of the environment and the command line must not reach files, logs or the Hub."""

import pytest
from conftest import TINY

import train
from hf_pneumonia.errors import run_script
from hf_pneumonia.publishing.publish import public_files

TOKENS = {
    "HF_TOKEN": "hf_" + "Environment" * 3,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "OlderName" * 4,
    "WANDB_API_KEY": "wandb" + "Key0123456789" * 3,
    "KAGGLE_KEY": "kaggle" + "Key9876543210" * 3,
}
GIVEN = "hf_" + "CommandLine" * 3

# The unique part of each token, in the encodings of pickles and URLs.
LETTERS = [
    secret[4:].encode(encoding) for secret in (*TOKENS.values(), GIVEN) for encoding in ("utf-8", "utf-16-le")
]


@pytest.fixture
def tokens(monkeypatch):
    for name, token in TOKENS.items():
        monkeypatch.setenv(name, token)


def test_no_token_is_in_a_run_its_log_its_cache_or_its_published_files(
    tokens, image_folder, tmp_path, capfd, monkeypatch
):
    finish, searched = train.finish_run_folder, []

    def search_first(folder, *rest) -> None:
        searched.extend(path for path in tmp_path.rglob("*") if path.is_file())
        assert [path for path in searched if any(letters in path.read_bytes() for letters in LETTERS)] == []
        finish(folder, *rest)  # deletes the checkpoints

    monkeypatch.setattr(train, "finish_run_folder", search_first)
    run = tmp_path / "run"
    flags = ["--dataset", image_folder, "--output_dir", run, *TINY, "--num_train_epochs", 1]
    flags += ["--cache_dir", tmp_path / "cache", "--hub_token", GIVEN]
    assert run_script("train.py", train.main, [*map(str, flags)]) in (0, None)
    output = "".join(capfd.readouterr())
    assert "epoch" in output and not [letters for letters in LETTERS if letters in output.encode()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and any(path.parent.name.startswith("checkpoint-") for path in searched)
    assert [path for path in files if any(letters in path.read_bytes() for letters in LETTERS)] == []
    for name, content in public_files(run, "user/name").items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert not [letters for letters in LETTERS if letters in data], name


def test_an_error_message_does_not_contain_the_token(tokens, capfd):
    for flags in (["--hub_token", GIVEN, "--image_size", "5"], [f"--push_to_hub_token={GIVEN}"]):
        assert run_script("train.py", train.main, flags) == 2
        output = "".join(capfd.readouterr())
        assert output and not [letters for letters in LETTERS if letters in output.encode()]
