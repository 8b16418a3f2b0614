import copy
import dataclasses
import json

from transformers import TrainingArguments
from written import written_report

from hf_pneumonia.publishing.public_report import RECIPE_KEYS, public_recipe, public_report, recipe_yaml
from hf_pneumonia.training.arguments import Recipe, parse_recipe

# Paths and settings of a run folder.
NOT_PUBLISHED = {"cache_dir", "overwrite_output_dir", "seeds"}


def test_metrics_are_unchanged_and_lists_of_files_become_counts():
    report = written_report()
    before = copy.deepcopy(report)
    public = public_report(report, ["films"])
    assert report == before
    for name in ("splits", "operating_point", "operating_points", "calibration", "checks", "versions"):
        assert public[name] == report[name]
    assert public["audit"]["appearance"] == report["audit"]["appearance"]
    counts = {"another reason": 1, "empty file": 1}
    assert public["data"]["unreadable"] == public["audit"]["unreadable"] == counts
    assert public["audit"]["conflicting_labels"] == {"groups": 1, "films": 2}
    assert "/home" not in json.dumps(public) and "jpeg" not in json.dumps(public)


def test_unlisted_keys_and_texts_in_place_of_numbers_are_removed_at_every_depth():
    report = written_report()
    report["host"] = "ward-7"
    report["data"]["path"] = "/home/somebody"
    report["splits"]["test"]["auroc"]["of"] = "a.jpeg"
    report["operating_point"]["uncertain"]["of"] = "a.jpeg"
    report["checks"]["robustness"]["blur"]["levels"][0]["file"] = "a.jpeg"
    report["recipe"]["hub_model_id"] = "somebody/secret"
    assert public_report(report, ["films"]) == public_report(written_report(), ["films"])
    report["splits"]["test"]["films"] = "a.jpeg"
    report["history"] = [{"epoch": 1.0, "train": {"loss": "a.jpeg"}}]
    public = public_report(report, ["films"])
    assert "films" not in public["splits"]["test"] and public["history"] == [{"epoch": 1.0, "train": {}}]


def test_local_weights_are_named_without_their_path():
    recipe = written_report()["recipe"] | {"pretrained": "/home/somebody/runs/first/"}
    assert public_recipe(recipe, ["films"])["pretrained"] == "first"


def test_every_setting_of_a_recipe_is_listed_as_public_or_not():
    own = {field.name for field in dataclasses.fields(Recipe)} - {
        field.name for field in dataclasses.fields(TrainingArguments)
    }
    assert own - NOT_PUBLISHED <= set(RECIPE_KEYS) and not NOT_PUBLISHED & set(RECIPE_KEYS)


def test_the_published_recipe_gives_the_same_training(tmp_path):
    (tmp_path / "empty.yaml").write_text("image_size: 64\n")
    flags = ["--output_dir", str(tmp_path / "run"), "--dataset", "/home/somebody/images"]
    flags += ["--rotation", "5", "6", "--lr_scheduler_type", "cosine"]
    flags += ["--lr_scheduler_kwargs", '{"num_cycles": 0.4}', "--adam_l2", "true"]
    flags += ["--run_name", "of somebody"]
    _, resolved = parse_recipe(flags, default=tmp_path / "empty.yaml")
    file = tmp_path / "published.yaml"
    file.write_text(recipe_yaml(public_recipe(resolved, ["films"]), False, resolved))
    assert "/home" not in file.read_text() and "of somebody" not in file.read_text()
    assert "not published: run_name" in file.read_text()
    _, again = parse_recipe([str(file), "--dataset", "/home/somebody/images"], default=None)
    assert again == {key: value for key, value in resolved.items() if key != "run_name"}
