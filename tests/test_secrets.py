"""A token that the environment or the command line holds stays there."""

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

# Of each token the letters that no other text has, in the encodings that a pickle and a URL use.
LETTERS = [
    secret[4:].encode(encoding) for secret in (*TOKENS.values(), GIVEN) for encoding in ("utf-8", "utf-16-le")
]


@pytest.fixture
def tokens(monkeypatch):
    for name, token in TOKENS.items():
        monkeypatch.setenv(name, token)


def test_no_byte_of_a_run_of_its_log_of_its_cache_and_of_what_it_publishes_has_a_token(
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
    said = "".join(capfd.readouterr())
    assert "epoch" in said and not [letters for letters in LETTERS if letters in said.encode()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and any(path.parent.name.startswith("checkpoint-") for path in searched)
    assert [path for path in files if any(letters in path.read_bytes() for letters in LETTERS)] == []
    for place, content in public_files(run, "user/name").items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert not [letters for letters in LETTERS if letters in data], place


def test_a_mistake_beside_a_token_is_told_without_it(tokens, capfd):
    for flags in (["--hub_token", GIVEN, "--image_size", "5"], [f"--push_to_hub_token={GIVEN}"]):
        assert run_script("train.py", train.main, flags) == 2
        said = "".join(capfd.readouterr())
        assert said and not [letters for letters in LETTERS if letters in said.encode()]
