import re
import shutil

import pytest
from huggingface_hub import HfApi, constants
from stub_page import HOSTILE

from hf_pneumonia.hub import commit_files
from hf_pneumonia.page.about import plain_markdown, read_evidence
from hf_pneumonia.page.one_image import real_examples
from hf_pneumonia.publishing.publish import public_files


@pytest.fixture
def bare(finished_run, tmp_path):
    """A model without this project's other files."""
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(finished_run / name, tmp_path / "bare")
    return tmp_path / "bare"


@pytest.fixture
def publish(local_hub, monkeypatch, tmp_path):
    """Publish files as ann/x to the local Hub, which huggingface_hub uses by default too."""
    monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", local_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    api = HfApi(local_hub.url, token=local_hub.user("ann"))
    return lambda files: commit_files(api, "ann/x", files, message="A model")


def test_a_finished_run_shows_its_card_and_plots_but_no_local_path(finished_run, publish):
    text, plots = read_evidence(str(finished_run))
    sections = re.findall(r"^## (.*)$", (finished_run / "README.md").read_text(), flags=re.MULTILINE)
    assert len(sections) > 5 and all(f"## {section}" in text for section in sections)
    assert "Not published" in text and "license:" not in text and str(finished_run) not in text
    assert len(plots) == 6 and all(path.is_file() for path in plots.values())
    files = public_files(finished_run, "ann/x")
    publish(files)
    text, plots = read_evidence("ann/x")
    assert text == plain_markdown(files["README.md"].decode()) and len(plots) == 6


def test_a_missing_card_or_model_is_stated_in_a_sentence(bare, publish):
    publish({path.name: path for path in bare.iterdir()})
    for model in (str(bare), "ann/x"):
        assert read_evidence(model) == ("This model has no model card.", {})
    assert "no such repository" in read_evidence("ann/none")[0]


def test_a_card_of_other_weights_is_not_shown(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    text, plots = read_evidence(str(run))
    assert "belongs to other weights" in text and "AUROC" not in text and plots == {}


def test_a_hostile_card_keeps_its_words_and_has_neither_html_nor_images(bare):
    (bare / "README.md").write_text(HOSTILE)
    text, _ = read_evidence(str(bare))
    assert "# A model" in text and "license" not in text
    assert not re.search(r"<[A-Za-z/!?]|!\[", text)
    (bare / "README.md").write_bytes(b"\xff\xfe" + b"[" * 200_000)
    assert len(read_evidence(str(bare))[0]) < 110_000


def test_the_examples_of_a_repository_are_fetched_and_their_source_is_shown(bare, publish):
    (bare / "examples").mkdir()
    (bare / "examples" / "a.jpeg").write_bytes(b"x")
    (bare / "examples" / "README.md").write_text("Of *somebody*, CC0. <script>window.ran = 1</script>")
    publish({path.relative_to(bare).as_posix(): path for path in bare.rglob("*") if path.is_file()})
    for model in (str(bare), "ann/x"):
        assert "Source of the examples\n\nOf *somebody*, CC0. &lt;script>" in read_evidence(model)[0]
        assert len(real_examples(model, str)) == 1
