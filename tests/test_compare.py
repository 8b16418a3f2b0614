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
LABEL = np.arange(N) % 3 % 2  # 20 of 60 are positive
PATIENT = [f"p{index // 2}" for index in range(N)]
FILES = [f"/images/{index}.png" for index in range(N)]
AREA = {"value": 0.7312, "ci95": [0.61, 0.84]}
SWAPPED = {"factor": 1.3, "proportions": {"1.2": {}, "1.3": {"auroc": AREA}}}
SECOND = np.random.default_rng(1).permutation(N)  # the order of the second run's images


def _probability(noise: float, seed: int) -> np.ndarray:
    logit = 2.0 * LABEL - 1 + np.random.default_rng(seed).normal(0, noise, N)
    return np.round(1 / (1 + np.exp(-logit)), 6)


def _run(folder, noise=1.0, seed=0, order=None, threshold=0.4, files=FILES, label=LABEL, **facts):
    order = np.arange(N) if order is None else order
    predictions = Predictions(files, PATIENT, label, _probability(noise, seed)).select(order)
    report = build_report({"test": predictions}, {"threshold": threshold}, **facts)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    predictions.write_csv(folder / "predictions_test.csv")
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        _run(tmp_path / "first", 1.0, 0, training_seconds=12.4, checks={"appearance": SWAPPED}),
        _run(tmp_path / "second", 2.5, 1, SECOND, 0.6, model={"parameters": 1_500_000}),
        _run(tmp_path / "third", 1.5, 2),
    ]


def test_the_metrics_equal_the_reports_and_every_run_is_tested_against_the_first(runs):
    comparison, _ = compare_runs(runs)
    for found, folder in zip(comparison["runs"], runs, strict=True):
        report = json.loads((folder / "report.json").read_text())
        test, point = report["splits"]["test"], report["operating_point"]["test"]
        assert found["name"] == folder.name and (found["films"], found["patients"]) == (60, 30)
        assert found["auroc"] == {name: test["auroc"][name] for name in ("value", "ci95")}
        assert found["sensitivity"]["ci95"] == point["sensitivity"]["ci95"] is not None
        assert found["brier"]["value"] == report["calibration"]["test"]["after"]["brier"]["value"]
    assert [run["training_seconds"] for run in comparison["runs"]] == [12.4, None, None]
    assert [run["auroc_swapped"] for run in comparison["runs"]] == [AREA, None, None]
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


def test_runs_on_different_images_are_listed_and_not_tested(runs, tmp_path):
    other = _run(tmp_path / "other", files=[*FILES[:50], *(f"/new/{index}.png" for index in range(10))])
    comparison, _ = compare_runs([runs[0], other])
    assert not comparison["same_films"] and comparison["tests"] == []
    assert any("(60, 60; 50 in all of them)" in line for line in table_lines(comparison))


def test_images_are_matched_by_their_bytes_if_both_runs_have_a_manifest(runs, tmp_path):
    moved = _run(tmp_path / "moved", 2.0, 3, files=[f"/elsewhere/{index}.png" for index in range(N)])
    assert not compare_runs([runs[0], moved])[0]["same_films"]
    for run, place in ((runs[0], "images"), (moved, "elsewhere")):
        (run / "audit").mkdir()
        # The last two are copies of one image.
        lines = [f"/{place}/{index}.png,hash{min(index, N - 2)}" for index in range(N)]
        (run / "audit" / "manifest.csv").write_text("\n".join(["path,content_hash", *lines, ""]))
    assert compare_runs([runs[0], moved])[0]["same_films"]


def test_the_tables_are_written(runs, tmp_path, capsys):
    main(["compare", *map(str, runs), "--output", str(tmp_path / "out")])
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "compare.md").read_text()
    for text in (printed, page):
        assert all(word in text for word in ("first", "second", "third", "1.50 M", "12 s", "Holm"))
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == compare_runs(runs)[0]
    assert (tmp_path / "out" / "roc.png").stat().st_size > 10_000


def test_runs_tested_on_one_class_are_compared_without_undefined_metrics(tmp_path):
    negative = np.zeros(N, int)
    runs = [str(_run(tmp_path / name, seed=seed, label=negative)) for seed, name in enumerate("ab")]
    main(["compare", *runs, "--output", str(tmp_path / "out")])
    test = json.loads((tmp_path / "out" / "compare.json").read_text())["tests"][0]
    assert test["delong"] == {"difference": None, "p": None, "ci95": None, "p_holm": None}
    assert test["mcnemar"]["p"] is not None


def test_different_labels_and_anything_except_two_finished_runs_are_errors(runs, tmp_path):
    label = LABEL.copy()
    label[7] = 1 - label[7]
    _run(tmp_path / "wrong", label=label)
    (tmp_path / "empty").mkdir()
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "seeds.json").write_text("{}")
    for other, code, value in (
        ("wrong", "labels-differ", "/images/7.png: .* NORMAL in wrong and PNEUMONIA in first"),
        ("none", "no-such-run", "none"),
        ("empty", "unfinished-run", "report.json"),
        ("seeds", "run-of-seeds", "seeds/seed-"),
        ("second/../first", "run-given-twice", "first"),
    ):
        with pytest.raises(UsageError, match=value) as error:
            compare_runs([runs[0], tmp_path / other])
        assert error.value.code == code
    with pytest.raises(UsageError) as error:
        compare_runs(runs[:1])
    assert error.value.code == "too-few-runs"


def test_a_damaged_run_is_refused(runs):
    report, table = runs[1] / "report.json", runs[1] / "predictions_test.csv"
    whole = table.read_text()
    lines = whole.splitlines()
    for file, text in (
        (table, whole.replace("NORMAL", "CAT")),
        (table, "\n".join([*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",nan"])),
        (table, "\n".join(lines[:-1])),
        (report, report.read_text()[:100]),
    ):
        file.write_text(text)
        with pytest.raises(UsageError) as error:
            compare_runs(runs)
        assert error.value.code == "damaged-run"
        table.write_text(whole)
