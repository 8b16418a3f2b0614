import copy
import csv
import re

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from written import written_config, written_manifest, written_report

from hf_pneumonia.publishing.card import (
    base_model,
    card,
    card_data,
    eval_result_files,
    plain,
    show_metric,
)
from hf_pneumonia.publishing.public_report import public_report
from hf_pneumonia.publishing.publish import public_files

REPO = "user/name"


def write_card(change=lambda report, config, manifest: None) -> str:
    report, config, manifest = written_report(), written_config(), written_manifest()
    change(report, config, manifest)
    public = public_report(report, list(manifest["sources"]))
    return card(public, config, public["recipe"], manifest, REPO)


RATES = ("sensitivity", "specificity")
LOWEST = {"value": 0.052, "ci95": [0.051, 0.053]}


def shown(metric: dict) -> str:
    low, high = metric["ci95"]
    return f"{metric['value']:.3f} [{low:.3f}, {high:.3f}]"


def numbers_in(value: object) -> set[str]:
    """Return every number in JSON values, in all formats that a card may use."""
    if isinstance(value, dict):
        return set().union(*(numbers_in(one) for pair in value.items() for one in pair))
    if isinstance(value, list):
        return set().union(*map(numbers_in, value))
    if isinstance(value, float):
        return {f"{value:.3f}", f"{value:.1f}", f"{value:.0f}", str(value)}
    return set(re.findall(r"\d+(?:\.\d+)?", str(value)))


def test_every_number_in_the_body_is_one_of_the_report():
    body = write_card().split("---\n", 2)[2]
    for fixed in (r"```.*?```", r"## Licence.*"):
        body = re.sub(fixed, "", body, flags=re.DOTALL)
    known = numbers_in([written_report(), written_config(), written_manifest()])
    matrix = written_report()["operating_point"]["test"]["confusion_matrix"]
    # 95% intervals, threshold 0.5 and chance AUROC, 8 and 16 bits, pixels from 0 to 1, float32, SHA-256.
    known |= {"95", "0.5", "8", "16", "0", "1", "32", "256", str(matrix["fn"] + matrix["tp"])}
    assert set(re.findall(r"\d+(?:\.\d+)?", body)) <= known


def test_each_table_has_the_metrics_of_its_rows_and_columns():
    def lower(report, config, manifest):
        report["checks"]["robustness"]["noise"]["levels"][1]["sensitivity"] = LOWEST

    report, text = written_report(), write_card(lower)
    test, point = report["splits"]["test"], report["operating_point"]["test"]
    appearance, robustness = report["checks"]["appearance"], report["checks"]["robustness"]
    expected = [("AUROC", test["auroc"]), ("average precision", test["average_precision"])]
    titles = {"precision": "precision (PPV among these images)", "f1": "F1", "mcc": "Matthews correlation"}
    for name in ("sensitivity", "specificity", "accuracy", *titles):
        expected.append((titles.get(name, name), test[name], point[name]))
    for label, right, wrong in (("NORMAL", "tn", "fp"), ("PNEUMONIA", "fn", "tp")):
        matrices = test["confusion_matrix"], point["confusion_matrix"]
        expected.append((label, *(matrix[key] for matrix in matrices for key in (right, wrong))))
    for name, one in test["predictive_values"].items():
        other, prevalence = point["predictive_values"][name], f"{one['prevalence']:.3f}"
        expected.append((prevalence, one["ppv"], one["npv"], other["ppv"], other["npv"]))
    for name, title in (("sensitivity_90", "sensitivity of 0.900"), ("youden", "Youden's index")):
        one = report["operating_points"][name]
        rates = (one[split][key] for split in ("validation", "test") for key in RATES)
        expected.append((title, f"{one['threshold']:.3f}", *rates))
    titles = {"ece": "expected calibration error", "brier": "Brier score", "nll": "negative log-likelihood"}
    for key, title in titles.items():
        splits = [report["calibration"][split] for split in ("validation", "test")]
        expected.append((title, *(split[when][key] for split in splits for when in ("before", "after"))))
    swapped = {f"proportions swapped by {factor}": one for factor, one in appearance["proportions"].items()}
    swapped["unchanged"] = swapped.pop("proportions swapped by 1.0")
    swapped["histogram and spectrum swapped"] = appearance["histogram_and_spectrum"]
    for title, one in swapped.items():
        expected.append((title, one["auroc"], *(one[key] for key in RATES)))
    title = "appearance contradicts the label (101 NORMAL, 201 PNEUMONIA)"
    expected.append((title, "", *(appearance["contradicting"][key] for key in RATES)))
    expected.append(("pairs matched by appearance", appearance["matched_auroc"], "", ""))
    for name, one in report["checks"]["shortcuts"].items():
        means = (f"{one['mean_probability'][label]:.3f}" for label in ("NORMAL", "PNEUMONIA"))
        expected.append((name.replace("_", " "), one["auroc"], *means))
    # Numbers grow from the start of the report: the lowest are those of the first level of blur.
    lowest = robustness["blur"]["levels"][0] | {"sensitivity": LOWEST}
    for name, title in (("auroc", "AUROC"), ("sensitivity",) * 2, ("specificity",) * 2):
        change = "noise, 0.1 (share)" if name == "sensitivity" else "blur, 0 (sigma, px at 224)"
        expected.append((title, lowest[name], change))
    virus = report["checks"]["subgroups"]["families"]["person-virus"]["sensitivity"]
    rates = (virus, "not defined", "1.000 [no interval]", "all NORMAL images")
    expected.append(("person-virus", 142, 106, *rates))
    for name, split in report["data"]["splits"].items():
        expected.append((name, split["films"], split["patients"], *split["classes"].values()))
    for cells in expected:
        row = " | ".join(shown(cell) if isinstance(cell, dict) else str(cell) for cell in cells)
        assert f"| {row} |".replace("  ", " ") in text


def test_the_summary_has_the_metrics_of_the_test_split():
    report, text = written_report(), " ".join(write_card().split())
    point, swapped = report["operating_point"]["test"], report["checks"]["appearance"]["proportions"]["1.2"]
    for sentence in (
        f"AUROC {shown(report['splits']['test']['auroc'])}; at its operating point (threshold 0.843,",
        f"sensitivity {shown(point['sensitivity'])}, specificity {shown(point['specificity'])}. With the",
        f"by 1.2: AUROC {shown(swapped['auroc'])}, sensitivity {shown(swapped['sensitivity'])}, specificity",
        "the band from 0.234 to 0.852",
        "41 missed pneumonias and 42 false alarms among 3006",
    ):
        assert sentence in text


def test_notices_appear_only_where_they_apply():
    def simulate(report, config, manifest):
        manifest["sources"] = {"phantom": {"kind": "phantom", "splits": {}}}
        config["pneumonia"]["leakage_allowed"] = True

    def leak(report, config, manifest):
        report["data"]["leakage"]["films_seen"] = 39

    usual, simulated, leaked = map(write_card, (lambda *_: None, simulate, leak))
    assert all("Not a medical device" in text for text in (usual, simulated, leaked))
    assert "SIMULATED" not in usual and "LEAKAGE" not in usual
    assert "> **SIMULATED IMAGES.**" in simulated and "- simulated\n" in simulated
    assert "> **LEAKAGE.**" in simulated and "none was found" in simulated
    assert "> **LEAKAGE.**" in leaked and "39 validation and test images" in leaked


def test_only_images_with_names_of_kermany_are_described_as_theirs():
    def kermany(report, config, manifest):
        report["data"]["source"] = "chest-xray-pneumonia"
        manifest["sources"] = {"rsna-chest-xray-pneumonia": manifest["sources"]["films"]}

    def named_as_theirs(report, config, manifest):
        kermany(report, config, manifest)
        manifest["patients_known_by"]["file name"] = manifest["films"]

    assert "Guangzhou" in write_card(named_as_theirs) and "CC BY 4.0" in write_card(named_as_theirs)
    for other in (write_card(), write_card(kermany)):  # another data set of such a name
        assert "Guangzhou" not in other and "Kermany" not in other


def test_optional_parts_of_a_run_may_be_missing():
    def change(report, config, manifest):
        report["operating_point"]["intercept"] = 0.0
        report["checks"]["appearance"] = None
        del config["pneumonia"]["uncertain"]
        report["splits"]["covid"] = copy.deepcopy(report["splits"]["test"]) | {"films": 91, "patients": 92}
        report["splits"]["covid"]["specificity"] = {"value": None, "ci95": None}
        report["splits"]["test"]["auroc"] = {"value": 1.0, "ci95": None}
        report["recipe"]["pretrained"] = "/home/somebody/runs/first"
        counts = {"test": {"NORMAL": {"films": 3, "patients": 2}}}
        manifest["sources"]["second"] = {"kind": "kaggle", "splits": counts}

    text = write_card(change)
    assert "AUROC 1.000 [no interval]" in text and "91 images of 92 patients" in text
    assert "(`first`)" in text and "/home" not in text
    assert "| second | test | 3 (2) | 0 |" in text
    assert not any(absent in text for absent in ("is added to", "swapped", "## Decisions", "uncertain"))


def test_external_names_can_not_break_a_table_and_no_number_is_rounded_to_0_or_1():
    assert plain("a|b`<img src=x>\n# c") == "a_b_img src=x_ _ c"
    assert plain("Lübeck/train-2") == "Lübeck/train-2"
    assert show_metric(0.99984) == "0.9998" and show_metric(0.00004) == "0.00004"
    assert show_metric(1.0) == "1.000" and show_metric(0.9994) == "0.999"


def test_the_front_matter_reads_back_with_the_metrics_of_the_report(tmp_path):
    (tmp_path / "README.md").write_text(write_card())
    data, report = metadata_load(tmp_path / "README.md"), written_report()
    stated = [data["license"], data["library_name"], data["pipeline_tag"]]
    assert stated == ["apache-2.0", "timm", "image-classification"]
    assert {"timm", "transformers", "pneumonia", "medical"} <= set(data["tags"])
    assert "datasets" not in data and "base_model" not in data
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "name"
    test, point = report["splits"]["test"], report["operating_point"]["test"]
    swapped = report["checks"]["appearance"]["proportions"]["1.2"]
    expected = {"roc_auc": test["auroc"], "roc_auc_proportions_swapped": swapped["auroc"]}
    expected |= {name: test[name] for name in ("average_precision", "accuracy", "f1")}
    expected |= {"recall": point["sensitivity"], "specificity": point["specificity"]}
    found = {one.metric_type: one.metric_value for one in results}
    assert found == {name: metric["value"] for name, metric in expected.items()}
    # The name of a local folder is not a data set on the Hub.
    data_sets = {(one.dataset_type, one.dataset_name, one.dataset_split) for one in results}
    assert data_sets == {("imagefolder", "films", "test")}


HUB = "somebody/chest-images"


def of_hub() -> tuple[dict, dict, dict]:
    """Return report, recipe and manifest of a run on one data set of the Hub."""
    report, manifest = written_report(), written_manifest()
    manifest["sources"] = {HUB: {"kind": "hub", "splits": {}}}
    return report, report["recipe"], manifest


def test_the_base_model_is_given_for_weights_from_the_hub_only():
    assert base_model({"model": "resnet18.a1_in1k", "pretrained": "true"}) == "timm/resnet18.a1_in1k"
    assert base_model({"model": "resnet50", "pretrained": "true"}).startswith("timm/resnet50.")
    for pretrained in ("false", "first"):
        assert base_model({"model": "resnet18.a1_in1k", "pretrained": pretrained}) is None


def test_only_data_sets_of_the_hub_are_linked_and_undefined_metrics_are_left_out():
    report, recipe, manifest = of_hub()
    manifest["sources"] |= {"kaggle:a/b": {"kind": "kaggle"}, "my/images": {"kind": "local"}}
    report["splits"]["test"]["auroc"] = {"value": None, "ci95": None}
    del report["checks"]["appearance"]  # of an earlier run
    data = card_data(report, recipe, manifest, REPO)
    assert data.to_dict()["datasets"] == [HUB]
    metrics = {one.metric_type for one in data.eval_results}
    assert metrics == {"accuracy", "average_precision", "f1", "recall", "specificity"}


def test_eval_results_read_back_with_the_metrics_of_the_report():
    report, recipe, manifest = of_hub()
    ((name, content),) = eval_result_files(report, recipe, manifest, REPO).items()
    entries = parse_eval_result_entries(yaml.safe_load(content))
    test, point = report["splits"]["test"], report["operating_point"]["test"]
    expected = {name: test[name]["value"] for name in ("auroc", "average_precision", "accuracy", "f1")}
    expected |= {name: point[name]["value"] for name in ("sensitivity", "specificity")}
    assert name == ".eval_results/test.yaml"
    assert {one.task_id: one.value for one in entries} == expected
    assert {one.date for one in entries} == {None}  # a date would change the bytes


def test_metrics_on_test_images_that_are_not_public_name_no_data_set_of_the_hub():
    report, recipe, manifest = of_hub()
    cut = copy.deepcopy(report)
    cut["data"]["notes"] = ["no test split found: cut 20 images of 18 patients as a test split"]
    several = {"sources": manifest["sources"] | {"films": {"kind": "local"}}}

    def named(report, recipe, manifest) -> set[str]:
        (content,) = eval_result_files(report, recipe, manifest, "u/n").values()
        return {one.dataset_id for one in parse_eval_result_entries(yaml.safe_load(content))}

    assert named(report, recipe, manifest) == {HUB}
    assert named(cut, recipe, manifest) == {f"hub:{HUB}"}
    assert named(report, recipe | {"split": "80/10/10"}, manifest) == {f"hub:{HUB}"}
    assert named(report, recipe, several) == {f"hub:{HUB} + local:films"}
    assert named(report, recipe, {"sources": {"phantom": {"kind": "phantom"}}}) == {"phantom"}
    assert named(report, recipe, {"sources": {"local/train": {"kind": "local"}}}) == {"local:local/train"}


def snippets_of(text: str, model: object, image: object) -> list[str]:
    text = text.replace(f"hf-hub:{REPO}", f"local-dir:{model}").replace(REPO, str(model))
    found = re.findall(r"```python\n(.*?)```", text.replace("image.jpeg", str(image)), flags=re.DOTALL)
    assert len(found) == 4
    return found


@pytest.fixture(scope="module")
def published(finished_run, tmp_path_factory):
    """The published files of a finished run, as a folder."""
    folder = tmp_path_factory.mktemp("published")
    for name, content in public_files(finished_run, REPO).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


@pytest.mark.parametrize("which", range(4), ids=["pipeline", "Auto classes", "timm", "PneumoniaClassifier"])
def test_each_snippet_of_the_card_gives_the_reported_probability(which, published, finished_run):
    text = (published / "README.md").read_text()
    with open(finished_run / "predictions_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in (rows[0], rows[-1]):
        names: dict = {}
        exec(snippets_of(text, published, row["file"])[which], names)
        found = names["prediction"].probability if which == 3 else names["probability"]
        assert found == pytest.approx(float(row["probability"]), abs=1e-5)


def test_snippets_for_a_network_of_this_package_import_its_module_first():
    def own(report, config, manifest):
        config["architecture"] = report["recipe"]["model"] = "cnn_baseline"

    for snippet in snippets_of(write_card(own), "model", "image.png")[:3]:
        assert snippet.startswith("import hf_pneumonia.modeling.cnn ")
