import hashlib
import json
import shutil

import pytest

from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.publish import public_files

REPO = "user/name"


def contents(files: dict) -> dict[str, bytes]:
    return {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in files.items()}


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_run_publishes_the_listed_files_and_no_others(finished_run):
    assert set(public_files(finished_run, REPO)) == {
        *(".eval_results/test.yaml", "README.md", "config.json", "gate.safetensors", "manifest.json"),
        *("model.safetensors", "recipe.yaml", "report.json"),
        *(f"plots/{name}.png" for name in ("class_distribution", "confusion_matrix", "curves")),
        *(f"plots/{name}.png" for name in ("reliability", "robustness", "roc")),
    }


def test_the_published_report_has_the_hash_of_the_weights_and_all_metrics(finished_run):
    files = public_files(finished_run, REPO)
    weights = hashlib.sha256((finished_run / "model.safetensors").read_bytes()).hexdigest()
    report = json.loads(files["report.json"])
    assert report["weights_sha256"] == weights and weights.encode() in files["README.md"]
    assert report["splits"] == json.loads((finished_run / "report.json").read_text())["splits"]


def test_an_ood_check_that_differs_from_the_report_is_refused(copied):
    ood_check = copied / "gate.safetensors"
    ood_check.write_bytes(ood_check.read_bytes()[:-1])
    with pytest.raises(UsageError, match="gate.safetensors") as error:
        public_files(copied, REPO)
    assert error.value.code == "weights-differ-from-report"


def test_no_published_file_contains_an_image_name_a_patient_or_a_local_path(finished_run, image_folder):
    names = {image.stem for image in image_folder.rglob("*.jpeg")} | {"person0_bacteria", "IM-0000"}
    for name, content in contents(public_files(finished_run, REPO)).items():
        for secret in (*names, str(image_folder), str(finished_run)):
            assert secret.encode() not in content, name


def test_the_same_run_gives_the_same_bytes_in_any_folder(finished_run, copied):
    assert contents(public_files(finished_run, REPO)) == contents(public_files(copied, REPO))


def test_a_missing_file_or_a_damaged_report_is_named(copied, tmp_path):
    for name in ("plots/robustness.png", "model.safetensors", "audit/manifest.csv", "report.json"):
        (copied / name).rename(tmp_path / "aside")
        with pytest.raises(UsageError, match=name) as error:
            public_files(copied, REPO)
        assert error.value.code == "not-a-finished-run"
        (tmp_path / "aside").rename(copied / name)
    not_json = json.dumps(json.loads((copied / "report.json").read_text()) | {"seed": float("nan")})
    for content in ("{", "[]", "\xff", not_json):
        (copied / "report.json").write_text(content, encoding="latin-1")
        with pytest.raises(UsageError, match="report.json") as error:
            public_files(copied, REPO)
        assert error.value.code == "damaged-json"


def test_a_report_without_a_value_of_the_card_is_refused(copied):
    whole = (copied / "report.json").read_text()
    for name in ("checks", "audit", "data.split_sha256", "recipe.pretrained", "audit.blank", "kept_epoch"):
        report = json.loads(whole)
        *parents, last = name.split(".")
        (report[parents[0]] if parents else report).pop(last)
        (copied / "report.json").write_text(json.dumps(report))
        with pytest.raises(UsageError, match=last) as error:
            public_files(copied, REPO)
        assert error.value.code == "report-incomplete"


def test_a_config_of_another_run_or_with_nan_or_a_local_path_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"_name_or_path": str(copied)}))
    with pytest.raises(UsageError, match="config.json") as error:
        public_files(copied, REPO)
    assert error.value.code == "local-path-in-file"
    (copied / "config.json").write_text(json.dumps(config | {"mean": float("nan")}))
    with pytest.raises(UsageError) as error:
        public_files(copied, REPO)
    assert error.value.code == "damaged-json"
    (copied / "config.json").write_text(json.dumps(config | {"pneumonia": {"threshold": 0.123}}))
    with pytest.raises(UsageError) as error:
        public_files(copied, REPO)
    assert error.value.code == "mixed-runs"
