import json
import shutil

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from hf_pneumonia.__main__ import main
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.compare import compare_runs
from hf_pneumonia.evaluation.compare_page import table_lines
from hf_pneumonia.evaluation.paired import delong_test, holm
from hf_pneumonia.evaluation.report import build_report
from hf_pneumonia.evaluation.scoring import Predictions

N = 60
LABEL = np.arange(N) % 3 % 2  # 20 of 60 are pneumonia
PATIENT = [f"p{index // 2}" for index in range(N)]
FILES = [f"/films/{index}.png" for index in range(N)]


def _probability(noise: float, seed: int) -> np.ndarray:
    logit = 2.0 * LABEL - 1 + np.random.default_rng(seed).normal(0, noise, N)
    return np.round(1 / (1 + np.exp(-logit)), 6)


def _run(folder, noise=1.0, seed=0, order=None, threshold=0.4, files=FILES, label=LABEL, **facts):
    order = np.arange(N) if order is None else order
    predictions = Predictions(
        [files[i] for i in order], [PATIENT[i] for i in order], label[order], _probability(noise, seed)[order]
    )
    report = build_report({"test": predictions}, {"threshold": threshold}, **facts)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    predictions.write_csv(folder / "predictions_test.csv")
    return folder


@pytest.fixture
def runs(tmp_path):
    order = np.random.default_rng(1).permutation(N)
    return [
        _run(tmp_path / "first", 1.0, 0, training_seconds=12.4),
        _run(tmp_path / "second", 2.5, 1, order, 0.6, model={"parameters": 1_500_000}),
        _run(tmp_path / "third", 1.5, 2),
    ]


def test_the_figures_are_those_of_the_reports(runs):
    comparison, _ = compare_runs(runs)
    for found, folder in zip(comparison["runs"], runs, strict=True):
        report = json.loads((folder / "report.json").read_text())
        test, point = report["splits"]["test"], report["operating_point"]["test"]
        assert found["name"] == folder.name and (found["films"], found["patients"]) == (60, 30)
        assert found["auroc"] == {name: test["auroc"][name] for name in ("value", "ci95")}
        assert found["sensitivity"]["ci95"] == point["sensitivity"]["ci95"] is not None
        assert found["brier"]["value"] == report["calibration"]["test"]["after"]["brier"]["value"]
    assert [run["training_seconds"] for run in comparison["runs"]] == [12.4, None, None]
    assert comparison["runs"][1]["parameters"] == 1_500_000


def test_every_run_is_tested_against_the_first_whatever_the_order_of_its_films(runs):
    comparison, _ = compare_runs(runs)
    assert comparison["same_films"] and comparison["films_shared"] == 60
    first = _probability(1.0, 0)
    expected = []
    for test, (noise, seed, threshold) in zip(
        comparison["tests"], [(2.5, 1, 0.6), (1.5, 2, 0.4)], strict=True
    ):
        probability = _probability(noise, seed)
        right, own = (probability >= threshold) == LABEL, (first >= 0.4) == LABEL
        alone, other = int(np.sum(right & ~own)), int(np.sum(own & ~right))
        found = test["mcnemar"]
        assert (found["right"], found["other_right"]) == (alone, other)
        assert found["p"] == pytest.approx(binomtest(alone, alone + other).pvalue)
        difference = roc_auc_score(LABEL, probability) - roc_auc_score(LABEL, first)
        assert test["delong"]["difference"] == pytest.approx(difference)
        assert test["delong"]["p"] == pytest.approx(delong_test(LABEL, probability, first)["p"])
        low, high = test["delong"]["ci95"]
        assert low < difference < high
        expected.append(found["p"])
    assert [test["mcnemar"]["p_holm"] for test in comparison["tests"]] == pytest.approx(holm(expected))


def test_runs_on_other_films_are_tabled_and_not_tested(runs, tmp_path):
    other = _run(tmp_path / "other", files=[*FILES[:50], *(f"/new/{index}.png" for index in range(10))])
    comparison, _ = compare_runs([runs[0], other])
    assert not comparison["same_films"] and comparison["tests"] == []
    lines = table_lines(comparison)
    assert sum("No paired tests: the runs were not tested on the same films (60, 60; all share 50)" in line
               for line in lines) == 1  # fmt: skip
    assert [line.split()[0] for line in lines[:3]] == ["run", "first", "other"]


def test_films_are_known_by_their_bytes_where_both_runs_have_a_manifest(runs, tmp_path):
    moved = _run(tmp_path / "moved", 2.0, 3, files=[f"/elsewhere/{index}.png" for index in range(N)])
    assert not compare_runs([runs[0], moved])[0]["same_films"]
    for run, place in ((runs[0], "films"), (moved, "elsewhere")):
        (run / "audit").mkdir()
        # The last two are copies of one film, which a test split may hold.
        lines = [f"/{place}/{index}.png,hash{min(index, N - 2)}" for index in range(N)]
        (run / "audit" / "manifest.csv").write_text("\n".join(["path,content_hash", *lines, ""]))
    assert compare_runs([runs[0], moved])[0]["same_films"]


def test_the_tables_stand_in_columns_and_in_markdown(runs, tmp_path, capsys):
    main(["compare", *map(str, runs), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    header, *rows = lines[:4]
    assert [row.split()[0] for row in rows] == ["first", "second", "third"]
    for name in ("AUROC", "sensitivity", "training"):
        start = header.index(name)
        assert all(row[start - 1] == " " and row[start] != " " for row in rows)
    assert "1.50 M" in rows[1] and "12 s" in rows[0]
    page = (tmp_path / "out" / "compare.md").read_text()
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + 3 + 2 + 2 and "Holm" in page
    assert {line.count("|") for line in tables[:5]} == {13}
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored == json.loads(json.dumps(compare_runs(runs)[0]))
    assert (tmp_path / "out" / "roc.png").stat().st_size > 10_000


def test_runs_tested_on_one_class_are_tabled_without_what_is_not_defined(tmp_path, capsys):
    healthy = np.zeros(N, int)
    runs = [str(_run(tmp_path / name, seed=seed, label=healthy)) for seed, name in enumerate("ab")]
    main(["compare", *runs, "--output", str(tmp_path / "out")])
    test = json.loads((tmp_path / "out" / "compare.json").read_text())["tests"][0]
    assert test["delong"] == {"difference": None, "p": None, "ci95": None, "p_holm": None}
    assert test["mcnemar"]["p"] is not None


def test_the_area_with_proportions_swapped_stands_beside_the_plain_one_where_a_report_has_it(tmp_path):
    area = {"value": 0.7312, "ci95": [0.61, 0.84]}
    appearance = {"factor": 1.3, "proportions": {"1.2": {}, "1.3": {"auroc": area}}}
    first = _run(tmp_path / "first", checks={"appearance": appearance})
    comparison, _ = compare_runs([first, _run(tmp_path / "second", seed=1)])
    assert [run["auroc_swapped"] for run in comparison["runs"]] == [area, None]
    assert "0.731 [0.610 0.840]" in table_lines(comparison)[1]


def test_runs_that_label_a_film_differently_are_an_error(runs, tmp_path):
    label = LABEL.copy()
    label[7] = 1 - label[7]
    wrong = _run(tmp_path / "wrong", label=label)
    with pytest.raises(UsageError, match="/films/7.png is NORMAL in wrong and PNEUMONIA in first"):
        compare_runs([runs[0], wrong])


def test_what_is_no_finished_run_is_an_error(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoint-3").mkdir(parents=True)
    for other, problem in (
        ("none", "no such folder"),
        ("empty", "is no run: report.json is missing"),
        ("begun", "is an unfinished run: report.json is missing"),
        ("first", "twice"),
        ("second/../first", "twice"),
    ):
        with pytest.raises(UsageError, match=problem):
            compare_runs([runs[0], tmp_path / other])
    with pytest.raises(UsageError, match="two runs or more, got 1"):
        compare_runs(runs[:1])


@pytest.mark.parametrize("damage", ["json", "figures", "columns", "labels", "numbers", "rows"])
def test_a_damaged_run_is_one_line(runs, damage):
    report, table = runs[1] / "report.json", runs[1] / "predictions_test.csv"
    lines = table.read_text().splitlines()
    if damage == "json":
        report.write_text(report.read_text()[:100])
    elif damage == "figures":
        report.write_text("{}")
    elif damage == "columns":
        table.write_text("\n".join(["file,label", *lines[1:]]))
    elif damage == "labels":
        table.write_text(table.read_text().replace("NORMAL", "CAT"))
    elif damage == "numbers":
        table.write_text("\n".join([*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",nan"]))
    elif damage == "rows":
        table.write_text("\n".join(lines[:-1]))
    with pytest.raises(UsageError, match="second.*evaluate its model anew") as error:
        compare_runs(runs[:2])
    assert "\n" not in str(error.value)


def test_a_training_and_its_evaluation_do_not_differ(finished_run, film_folder, tmp_path, capsys):
    flags = ["--dataset", str(film_folder), "--output", str(tmp_path / "again")]
    main(["evaluate", "--model", str(finished_run), *flags])
    main(["compare", str(finished_run), str(tmp_path / "again"), "--output", str(tmp_path / "out")])
    comparison = json.loads((tmp_path / "out" / "compare.json").read_text())
    first, again = comparison["runs"]
    assert comparison["same_films"]
    assert first["auroc"]["value"] == pytest.approx(again["auroc"]["value"], abs=1e-6)
    assert first["parameters"] == again["parameters"] > 0
    test = comparison["tests"][0]
    assert test["mcnemar"] == {"right": 0, "other_right": 0, "p": 1.0, "p_holm": 1.0}
    assert test["delong"]["difference"] == 0 and test["delong"]["p"] == 1
    # A third one, whose folder was copied, is another run.
    shutil.copytree(tmp_path / "again", tmp_path / "third")
    assert len(compare_runs([finished_run, tmp_path / "again", tmp_path / "third"])[0]["tests"]) == 2
