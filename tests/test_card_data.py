import copy

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from written import written_manifest, written_report

from hf_pneumonia.publishing.card_data import base_model, card_data, eval_result_files

HUB = "somebody/chest-films"


def of_hub(**source) -> tuple[dict, dict, dict]:
    """Report, recipe and manifest of a run on one data set of the Hub."""
    report, manifest = written_report(), written_manifest()
    manifest["sources"] = {HUB: {"kind": "hub", "splits": {}} | source}
    return report, report["recipe"], manifest


@pytest.mark.parametrize(
    ("model", "pretrained", "expected"),
    [
        ("resnet18.a1_in1k", "true", "timm/resnet18.a1_in1k"),
        ("resnet18.a1_in1k", "false", None),
        ("resnet18.a1_in1k", "first", None),
    ],
)
def test_a_base_model_is_named_where_weights_came_from_the_hub(model, pretrained, expected):
    assert base_model({"model": model, "pretrained": pretrained}) == expected


def test_an_architecture_without_a_tag_started_from_timms_default_weights():
    assert base_model({"model": "resnet50", "pretrained": "true"}).startswith("timm/resnet50.")


def test_data_sets_of_the_hub_are_linked_and_no_others():
    report, recipe, manifest = of_hub()
    manifest["sources"] |= {"kaggle:a/b": {"kind": "kaggle"}, "my/films": {"kind": "local"}}
    assert card_data(report, recipe, manifest, "user/name").to_dict()["datasets"] == [HUB]


def test_figures_that_are_not_defined_are_left_out_of_the_index():
    report, recipe, manifest = of_hub()
    report["splits"]["test"]["auroc"] = {"value": None, "ci95": None}
    del report["checks"]["appearance"]  # of an earlier run
    results = card_data(report, recipe, manifest, "user/name").eval_results
    assert {one.metric_type for one in results} == {
        "accuracy",
        "average_precision",
        "f1",
        "recall",
        "specificity",
    }


def test_eval_results_of_a_data_sets_own_test_split_read_back():
    report, recipe, manifest = of_hub()
    files = eval_result_files(report, recipe, manifest, "user/name")
    assert list(files) == [".eval_results/test.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(*files.values()))
    test, point = report["splits"]["test"], report["operating_point"]["test"]
    assert {one.task_id: one.value for one in entries} == {
        "auroc": test["auroc"]["value"],
        "average_precision": test["average_precision"]["value"],
        "accuracy": test["accuracy"]["value"],
        "f1": test["f1"]["value"],
        "sensitivity": point["sensitivity"]["value"],
        "specificity": point["specificity"]["value"],
    }
    assert {one.dataset_id for one in entries} == {HUB}
    assert {one.date for one in entries} == {None}  # the same run, the same bytes


def test_figures_on_films_that_nobody_else_can_find_are_of_no_data_set_of_the_hub():
    report, recipe, manifest = of_hub()
    cut = copy.deepcopy(report)
    cut["data"]["notes"] = ["no test split found: cut 20 films of 18 patients as a test split"]
    several = {"sources": manifest["sources"] | {"films": {"kind": "local"}}}
    local = {"sources": {"films": {"kind": "local"}}}

    def named(report, recipe, manifest) -> set[str]:
        (content,) = eval_result_files(report, recipe, manifest, "u/n").values()
        return {one.dataset_id for one in parse_eval_result_entries(yaml.safe_load(content))}

    assert named(report, recipe, manifest) == {HUB}
    assert named(cut, recipe, manifest) == {f"hub:{HUB}"}
    assert named(report, recipe | {"split": "80/10/10"}, manifest) == {f"hub:{HUB}"}
    assert named(report, recipe, several) == {f"hub:{HUB} + local:films"}
    assert named(report, recipe, local) == {"local:films"}
    assert named(report, recipe, {"sources": {"phantom": {"kind": "phantom"}}}) == {"phantom"}
    assert named(report, recipe, {"sources": {"local/train": {"kind": "local"}}}) == {"local:local/train"}
