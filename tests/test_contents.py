import hashlib
import json
import shutil

import pytest
from huggingface_hub.repocard import metadata_load

from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.contents import public_files

REPO = "user/name"


def contents(files: dict) -> dict[str, bytes]:
    return {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in files.items()}


@pytest.fixture
def copied(finished_run, tmp_path):
    """The finished run, to be spoilt."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_run_publishes_the_listed_files_and_no_others(finished_run):
    assert set(public_files(finished_run, REPO)) == {
        ".eval_results/test.yaml",
        "README.md",
        "config.json",
        "gate.safetensors",
        "manifest.json",
        "model.safetensors",
        "recipe.yaml",
        "report.json",
        *(f"plots/{name}.png" for name in ("class_distribution", "confusion_matrix", "curves")),
        *(f"plots/{name}.png" for name in ("reliability", "robustness", "roc")),
    }


def test_the_report_that_leaves_knows_the_weights_beside_it(finished_run):
    files = public_files(finished_run, REPO)
    weights = hashlib.sha256((finished_run / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(files["report.json"])["weights_sha256"] == weights
    assert weights.encode() in files["README.md"]


def test_a_gate_that_the_report_does_not_speak_of_is_not_published(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    gate = bytearray((run / "gate.safetensors").read_bytes())
    gate[-1] ^= 1
    (run / "gate.safetensors").write_bytes(gate)
    with pytest.raises(UsageError, match="gate.safetensors is missing or damaged"):
        public_files(run, REPO)
    (run / "gate.safetensors").unlink()
    with pytest.raises(UsageError, match="gate.safetensors is missing or damaged"):
        public_files(run, REPO)


def test_no_file_that_leaves_names_a_film_a_patient_or_a_place(finished_run, film_folder):
    names = {film.stem for film in film_folder.rglob("*.jpeg")} | {"person0_bacteria", "IM-0000"}
    for name, content in contents(public_files(finished_run, REPO)).items():
        for secret in (*names, str(film_folder), str(finished_run)):
            assert secret.encode() not in content, name


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(finished_run, copied):
    assert contents(public_files(finished_run, REPO)) == contents(public_files(copied, REPO))


def test_the_card_stands_on_the_sanitised_report(finished_run, tmp_path):
    files = contents(public_files(finished_run, REPO))
    report = json.loads(files["report.json"])
    assert report["splits"] == json.loads((finished_run / "report.json").read_text())["splits"]
    assert report["recipe"]["dataset"] == [report["data"]["source"]]
    (tmp_path / "README.md").write_bytes(files["README.md"])
    assert metadata_load(tmp_path / "README.md")["model-index"][0]["name"] == "name"


@pytest.mark.parametrize(
    "name", ["report.json", "config.json", "model.safetensors", "audit/manifest.csv", "plots/robustness.png"]
)
def test_a_run_that_lacks_a_file_is_refused_by_its_name(copied, name):
    (copied / name).unlink()
    with pytest.raises(UsageError, match=f"{name} is missing"):
        public_files(copied, REPO)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_report_is_refused(copied, content):
    (copied / "report.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="report.json is damaged"):
        public_files(copied, REPO)


def change(path, edit):
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "name", ["checks", "audit", "data.split_sha256", "recipe.pretrained", "audit.blank", "kept_epoch"]
)
def test_a_report_without_what_the_card_needs_is_refused(copied, name):
    *way, last = name.split(".")
    change(copied / "report.json", lambda report: (report[way[0]] if way else report).pop(last))
    with pytest.raises(UsageError, match=f"{last}.*train again"):
        public_files(copied, REPO)


def test_a_report_beside_the_model_of_another_run_is_refused(copied):
    change(copied / "config.json", lambda config: config["pneumonia"].update(threshold=0.123))
    with pytest.raises(UsageError, match="different runs"):
        public_files(copied, REPO)


def test_a_secret_in_a_file_that_goes_as_it_is_stops_everything(copied):
    change(copied / "config.json", lambda config: config.update(_name_or_path=str(copied)))
    with pytest.raises(UsageError, match="config.json holds a path"):
        public_files(copied, REPO)
