import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sklearn
from written import predicted

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.hf_metric import PneumoniaMetric
from hf_pneumonia.evaluation.intervals import NOT_DEFINED, wilson
from hf_pneumonia.evaluation.metrics import (
    METRICS,
    auroc,
    metrics_at,
    predictive_values,
    score_predictions,
    split_reports,
    threshold_metrics,
)

# By hand: threshold 0.5 calls images 0, 1, 2, 5. Of 4 pneumonias (0 to 3) three are found; one alarm is
# false.
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.6, 0.3, 0.1, 0.7, 0.2, 0.4])

pytestmark = pytest.mark.filterwarnings("error")


def _drawn(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.6).astype(int)
    return predicted(labels, norm.cdf(rng.normal(2 * labels - 1)))


def test_the_metrics_equal_a_table_computed_by_hand(tmp_path):
    scores = score_predictions(LABELS, PROBABILITIES)
    assert scores["confusion_matrix"] == {"tn": 3, "fp": 1, "fn": 1, "tp": 3}
    # AUROC: of 16 pairs, 0.6 loses to 0.7, and 0.3 to 0.7 and 0.4. Average precision by steps.
    expected = {
        "accuracy": 6 / 8, "precision": 3 / 4, "sensitivity": 3 / 4, "specificity": 3 / 4, "f1": 3 / 4,
        "auroc": 13 / 16, "average_precision": (1 + 1 + 3 / 4 + 4 / 6) / 4, "mcc": (9 - 1) / 16,
    }  # fmt: skip
    assert {name: scores[name] for name in METRICS} == pytest.approx(expected)
    metric = PneumoniaMetric(cache_dir=str(tmp_path))  # the same in batches, as the evaluate library has it
    for part in (slice(0, 3), slice(3, 8)):
        metric.add_batch(predictions=PROBABILITIES[part], references=LABELS[part])
    assert metric.compute() == scores
    # Separated perfectly: scikit-learn's own sum is 1.0000000000000002 for these.
    separated = score_predictions(np.repeat([0, 1], [4, 9]), np.linspace(0, 1, 13))
    assert (separated["auroc"], separated["average_precision"]) == (1, 1)
    assert all(threshold_metrics(tn, 0, 0, tp)["mcc"] <= 1 for tn in range(1, 30) for tp in range(1, 30))


def test_an_undefined_metric_is_none():
    one_class = score_predictions([1, 1], [0.9, 0.2])
    assert [one_class[name] for name in ("auroc", "average_precision", "specificity", "mcc")] == [None] * 4
    nothing_called = score_predictions([1, 0], [0.2, 0.1])
    assert nothing_called["precision"] is None and nothing_called["f1"] == 0


def test_predictive_values_equal_a_table_computed_by_hand():
    # Of 1000 images 50 are positive; 45 are called, and 95 of the 950 others: PPV 45/140, NPV 855/860.
    assert predictive_values(0.9, 0.9, 0.05) == pytest.approx((45 / 140, 855 / 860))
    # Of 1000 images 200 are positive: 180 are called, and 80 of the 800 others: PPV 180/260, NPV 720/740.
    assert predictive_values(0.9, 0.9, 0.2) == pytest.approx((180 / 260, 720 / 740))
    ppv, npv = predictive_values(0.0, 1.0, 0.2)
    assert np.isnan(ppv) and npv == pytest.approx(0.8)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 1.1])
def test_an_invalid_probability_is_a_clear_error(wrong):
    with pytest.raises(UsageError, match=f"{wrong} .1 of 3 images") as error:
        score_predictions([0, 1, 1], [0.1, wrong, 0.5])
    assert error.value.code == "invalid-probabilities"
    with pytest.raises(UsageError, match=f"{wrong} .1 of 2 images"):
        split_reports(predicted([0, 1], [0.2, wrong]), [0.5])


def test_every_metric_of_a_report_equals_score_predictions_and_lies_in_its_interval():
    predictions = _drawn()
    reports = split_reports(predictions, [0.4, 0.6])
    for report, threshold in zip(reports, (0.4, 0.6), strict=True):
        scores = score_predictions(predictions.label, predictions.probability, threshold)
        for name in METRICS:
            assert report[name]["value"] == scores[name]
            assert report[name]["ci95"][0] < scores[name] < report[name]["ci95"][1]
        assert (report["films"], report["patients"], report["threshold"]) == (400, 400, threshold)
        assert report["confusion_matrix"] == scores["confusion_matrix"]


def test_wilsons_intervals_count_the_right_images():
    # 3 of 4 pneumonias found, 1 of 6 others called.
    images = predicted([1] * 4 + [0] * 6, [0.9, 0.8, 0.7, 0.1, 0.6, *[0.2] * 5])
    (report,) = split_reports(images, [0.5])
    trials = {"accuracy": (8, 10), "precision": (3, 4), "sensitivity": (3, 4), "specificity": (5, 6)}
    for name, pair in trials.items():
        assert report[name]["wilson95"] == wilson(*pair)


def test_a_sensitivity_and_a_negative_predictive_value_of_one_have_intervals():
    images = predicted([1] * 20 + [0] * 20, np.r_[np.full(20, 0.9), np.linspace(0, 0.8, 20)])
    (report,) = split_reports(images, [0.5])
    assert report["sensitivity"] == {"value": 1, "ci95": wilson(20, 20), "wilson95": wilson(20, 20)}
    assert report["specificity"]["ci95"][1] < 1
    npv = report["predictive_values"]["0.20"]["npv"]
    worst = predictive_values(report["sensitivity"]["ci95"][0], report["specificity"]["ci95"][0], 0.2)[1]
    assert npv == {"value": 1, "ci95": pytest.approx([float(worst), 1])}
    # Many images of few patients count as few trials.
    few = predicted([1] * 20 + [0] * 20, [0.9] * 20 + [0.1] * 20, [*("abcd" * 5), *range(20)])
    assert split_reports(few, [0.5])[0]["sensitivity"]["ci95"] == wilson(4, 4)


def test_predictive_values_follow_from_sensitivity_and_specificity_in_the_same_replicates():
    (report,) = split_reports(_drawn(), [0.4])
    table, label = report["predictive_values"], _drawn().label
    assert [one["prevalence"] for one in table.values()] == [0.05, 0.2, label.mean()]
    for found in table.values():
        pair = report["sensitivity"]["value"], report["specificity"]["value"]
        for name, value in zip(("ppv", "npv"), predictive_values(*pair, found["prevalence"]), strict=True):
            assert found[name]["value"] == pytest.approx(float(value))
            assert found[name]["ci95"][0] < value < found[name]["ci95"][1]
    assert table["own"]["ppv"]["value"] == pytest.approx(report["precision"]["value"])
    # Delta method for log(PPV / (1 - PPV)): Mercaldo, Lau, Zhou, Statistics in Medicine 2007.
    sensitivity, specificity = report["sensitivity"]["value"], report["specificity"]["value"]
    positives = label.sum()
    deviation = np.sqrt(
        (1 - sensitivity) / (sensitivity * positives) + specificity / ((1 - specificity) * (400 - positives))
    )
    found = table["0.20"]["ppv"]
    logit = np.log(found["value"] / (1 - found["value"]))
    expected = [1 / (1 + np.exp(-(logit + side * 1.96 * deviation))) for side in (-1, 1)]
    assert found["ci95"] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_the_metrics_that_it_defines(label):
    probability = np.linspace(0.1, 0.9, 8)
    (report,) = split_reports(predicted([label] * 8, probability), [0.5])
    defined, other = ("sensitivity", "specificity") if label else ("specificity", "sensitivity")
    assert report[defined]["value"] == pytest.approx(0.5) and report[defined]["ci95"]
    assert report[other] == {**NOT_DEFINED, "wilson95": None}
    assert report["auroc"] == {**NOT_DEFINED, "delong95": None}
    assert report["predictive_values"]["0.05"]["ppv"] == NOT_DEFINED
    found = metrics_at(np.full(8, label), probability, range(8), 0.5)
    assert found["auroc"] == NOT_DEFINED
    assert (found[defined], found[other]) == (report[defined], report[other])


def test_patients_with_many_images_widen_the_interval_of_the_area():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    probability = np.round(np.clip(rng.normal(0.35 + 0.3 * label, 0.25), 0, 1), 1)  # with ties
    apart, together = (
        auroc(np.repeat(label, 4), np.repeat(probability, 4), patients)
        for patients in (range(240), np.repeat(np.arange(60), 4))
    )
    assert apart["value"] == pytest.approx(sklearn.roc_auc_score(label, probability))
    assert np.ptp(together["ci95"]) > 1.6 * np.ptp(apart["ci95"])  # about twice: a quarter of the draws


def test_an_image_at_the_threshold_is_called_pneumonia():
    label, probability = [1, 1, 1, 0, 0], [0.5, 0.4, 0.9, 0.5, 0.1]
    (report,) = split_reports(predicted(label, probability), [0.5])
    for found in (report, metrics_at(np.array(label), np.array(probability), range(5), 0.5)):
        assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (2 / 3, 1 / 2)
        assert found["sensitivity"]["wilson95"] == wilson(2, 3)
