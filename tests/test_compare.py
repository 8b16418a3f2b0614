import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_pneumonia.__main__ import main
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.compare import compare_runs, table_lines
from hf_pneumonia.evaluation.intervals import delong_test, holm, mcnemar
from hf_pneumonia.evaluation.metrics import auroc_difference_interval
from hf_pneumonia.evaluation.report import build_report
from hf_pneumonia.evaluation.scoring import Predictions

N = 60
LABEL = np.arange(N) % 3 % 2  # 20 of 60 are pneumonia
PATIENT = [f"p{index // 2}" for index in range(N)]
FILES = [f"/films/{index}.png" for index in range(N)]
SECOND = np.random.default_rng(1).permutation(N)  # the order of the second run's images


def _probability(noise: float, seed: int) -> np.ndarray:
    logit = 2.0 * LABEL - 1 + np.random.default_rng(seed).normal(0, noise, N)
    return np.round(1 / (1 + np.exp(-logit)), 6)


def _run(folder, noise=1.0, seed=0, order=None, threshold=0.4, files=FILES, label=LABEL, **facts):
    order = np.arange(N) if order is None else order
    predictions = Predictions(files, PATIENT, label, _probability(noise, seed)).part(order)
    report = build_report({"test": predictions}, {"threshold": threshold}, **facts)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    predictions.write_csv(folder / "predictions_test.csv")
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        _run(tmp_path / "first", 1.0, 0, training_seconds=12.4),
        _run(tmp_path / "second", 2.5, 1, SECOND, 0.6, model={"parameters": 1_500_000}),
        _run(tmp_path / "third", 1.5, 2),
    ]


def test_the_metrics_are_those_of_the_reports_and_every_run_is_tested_against_the_first(runs):
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
    assert comparison["same_films"] and comparison["films_shared"] == 60

    first, expected = _probability(1.0, 0), []
    for noise, seed, threshold in ((2.5, 1, 0.6), (1.5, 2, 0.4)):
        probability = _probability(noise, seed)  # in the order of the first run's images
        interval = auroc_difference_interval(LABEL, PATIENT, probability, first)
        delong = {**delong_test(LABEL, probability, first), "ci95": interval}
        difference = roc_auc_score(LABEL, probability) - roc_auc_score(LABEL, first)
        assert delong["difference"] == pytest.approx(difference)
        expected.append((mcnemar(LABEL, probability >= threshold, first >= 0.4), delong))
    for number, name in enumerate(("mcnemar", "delong")):
        adjusted = holm([pair[number]["p"] for pair in expected])
        for test, pair, p in zip(comparison["tests"], expected, adjusted, strict=True):
            assert test[name] == {**pair[number], "p_holm": p}


def test_runs_on_other_images_are_tabled_and_not_tested(runs, tmp_path):
    other = _run(tmp_path / "other", files=[*FILES[:50], *(f"/new/{index}.png" for index in range(10))])
    comparison, _ = compare_runs([runs[0], other])
    assert not comparison["same_films"] and comparison["tests"] == []
    lines = table_lines(comparison)
    assert sum("No paired tests" in line and "(60, 60; all share 50)" in line for line in lines) == 1
    assert [line.split()[0] for line in lines[:3]] == ["run", "first", "other"]


def test_images_are_known_by_their_bytes_where_both_runs_have_a_manifest(runs, tmp_path):
    moved = _run(tmp_path / "moved", 2.0, 3, files=[f"/elsewhere/{index}.png" for index in range(N)])
    assert not compare_runs([runs[0], moved])[0]["same_films"]
    for run, place in ((runs[0], "films"), (moved, "elsewhere")):
        (run / "audit").mkdir()
        # The last two are copies of one image, which a test split may hold.
        lines = [f"/{place}/{index}.png,hash{min(index, N - 2)}" for index in range(N)]
        (run / "audit" / "manifest.csv").write_text("\n".join(["path,content_hash", *lines, ""]))
    assert compare_runs([runs[0], moved])[0]["same_films"]


def test_the_tables_are_written_in_columns_and_in_markdown(runs, tmp_path, capsys):
    main(["compare", *map(str, runs), "--output", str(tmp_path / "out")])
    header, *rows = capsys.readouterr().out.splitlines()[:4]
    assert [row.split()[0] for row in rows] == ["first", "second", "third"]
    for name in ("AUROC", "sensitivity", "training"):
        start = header.index(name)
        assert all(row[start - 1] == " " and row[start] != " " for row in rows)
    assert "1.50 M" in rows[1] and "12 s" in rows[0]
    page = (tmp_path / "out" / "compare.md").read_text()
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + 3 + 2 + 2 and "Holm" in page
    assert {line.count("|") for line in tables[:5]} == {13}
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == compare_runs(runs)[0]
    assert (tmp_path / "out" / "roc.png").stat().st_size > 10_000


def test_runs_tested_on_one_class_are_tabled_without_undefined_metrics(tmp_path):
    healthy = np.zeros(N, int)
    runs = [str(_run(tmp_path / name, seed=seed, label=healthy)) for seed, name in enumerate("ab")]
    main(["compare", *runs, "--output", str(tmp_path / "out")])
    test = json.loads((tmp_path / "out" / "compare.json").read_text())["tests"][0]
    assert test["delong"] == {"difference": None, "p": None, "ci95": None, "p_holm": None}
    assert test["mcnemar"]["p"] is not None


def test_the_area_with_proportions_swapped_is_beside_the_plain_one_where_a_report_has_it(tmp_path):
    area = {"value": 0.7312, "ci95": [0.61, 0.84]}
    appearance = {"factor": 1.3, "proportions": {"1.2": {}, "1.3": {"auroc": area}}}
    first = _run(tmp_path / "first", checks={"appearance": appearance})
    comparison, _ = compare_runs([first, _run(tmp_path / "second", seed=1)])
    assert [run["auroc_swapped"] for run in comparison["runs"]] == [area, None]
    assert "0.731 [0.610 0.840]" in table_lines(comparison)[1]


def test_runs_that_label_an_image_differently_are_an_error(runs, tmp_path):
    label = LABEL.copy()
    label[7] = 1 - label[7]
    wrong = _run(tmp_path / "wrong", label=label)
    with pytest.raises(UsageError, match="/films/7.png is NORMAL in wrong and PNEUMONIA in first"):
        compare_runs([runs[0], wrong])


def test_anything_but_finished_runs_is_an_error(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for other, problem in (
        ("none", "no such folder"),
        ("empty", "report.json is missing"),
        ("second/../first", "twice"),
    ):
        with pytest.raises(UsageError, match=problem):
            compare_runs([runs[0], tmp_path / other])
    with pytest.raises(UsageError, match="got 1"):
        compare_runs(runs[:1])


@pytest.mark.parametrize("damage", ["json", "figures", "columns", "labels", "numbers", "rows"])
def test_a_damaged_run_is_one_line(tmp_path, damage):
    run = _run(tmp_path / "damaged")
    report, table = run / "report.json", run / "predictions_test.csv"
    lines = table.read_text().splitlines()
    file, text = {
        "json": (report, report.read_text()[:100]),
        "figures": (report, "{}"),
        "columns": (table, "\n".join(["file,label", *lines[1:]])),
        "labels": (table, table.read_text().replace("NORMAL", "CAT")),
        "numbers": (table, "\n".join([*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",nan"])),
        "rows": (table, "\n".join(lines[:-1])),
    }[damage]
    file.write_text(text)
    with pytest.raises(UsageError, match="damaged.*evaluate its model anew") as error:
        compare_runs([run, _run(tmp_path / "other")])
    assert "\n" not in str(error.value)
