"""Appearance checks of a data set and of a network, on images with a known shortcut."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from written import Network

from hf_pneumonia.data.appearance import STATISTICS, appearance_scores, measure_appearance
from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.appearance import (
    audit_appearance,
    audit_lines,
    check_appearance,
    contradicting,
    matched_auroc,
    score_appearance,
)
from hf_pneumonia.evaluation.intervals import NOT_DEFINED, bootstrap_counts, percentile_interval
from hf_pneumonia.evaluation.metrics import auroc, metrics_at
from hf_pneumonia.evaluation.scoring import (
    Predictions,
    pneumonia_probability,
    score_images,
    score_matched,
    score_swapped,
)

# The check of a network.


def proportions(images):
    """Read how wide the original was: a wide image that is squashed is sharper horizontally."""
    return 20 * (images.diff(dim=2).abs().mean((1, 2)) / images.diff(dim=1).abs().mean((1, 2))).log()


def lesion(images):
    """Read the lesion: the centre is brighter than the whole."""
    return 10 * (images[:, 13:19, 13:19].mean((1, 2)) - images.mean((1, 2))) - 6


class Images:
    """A cohort and its cache: 32 x 32 images, squashed from 40-48 x 45 (normal) or 52-60 x 45 (pneumonia).

    Pneumonias have a bright spot in the centre. `train` comes first."""

    def __init__(self, train: int, test: int):
        rng, count = np.random.default_rng(0), train + test
        self.label = np.arange(count) % 2
        self.split = np.repeat(["train", "test"], [train, test])
        self.patient = np.array([f"p{row // 4}-{row % 2}" for row in range(count)])  # two images each
        images, statistics = [], []
        for label in self.label:
            width = int(rng.integers(40, 49)) + 12 * label
            field = Image.fromarray(rng.integers(40, 160, (12, round(12 * width / 45)), dtype=np.uint8))
            image = np.array(field.resize((width, 45), Image.Resampling.BICUBIC).resize((32, 32)))
            image[13:19, 13:19] = image[13:19, 13:19] // 4 + (170 if label else 60)
            images.append(image)
            statistics.append(measure_appearance(image, width, 45))
        self.cache, self.images, self.facts = self, np.stack(images), {"appearance": np.stack(statistics)}

    def rows(self, split):
        return np.flatnonzero(self.split == split)

    def __getitem__(self, rows):
        return self.images[np.asarray(rows)]


def check(images, read, threshold=0.5, chosen=slice(None)):
    rows, model = images.rows("test")[chosen], Network(read)
    probability = pneumonia_probability(score_images(model, images.cache, rows, 16))
    scored = Predictions([], images.patient[rows].tolist(), images.label[rows], probability)
    return check_appearance(model, images, rows, scored, threshold, 16)


@pytest.fixture(scope="module")
def images():
    return Images(train=80, test=80)


def test_swapping_appearance_exposes_a_network_that_reads_it_and_not_one_that_reads_lesions(
    images,
):
    exposed, sound = check(images, proportions, 0.4), check(images, lesion)
    areas = [one["auroc"]["value"] for one in exposed["proportions"].values()]
    assert exposed["vertical"] == "NORMAL" and list(exposed["proportions"])[0] == "1.0"
    assert areas[0] > 0.9 and areas[2] < 0.6 and areas[-1] < 0.1 and areas == sorted(areas, reverse=True)
    assert exposed["matched_auroc"]["value"] < areas[0] - 0.05
    assert exposed["appearance_auroc"]["value"] > 0.9
    for one in (*sound["proportions"].values(), sound["histogram_and_spectrum"]):
        assert one["auroc"]["value"] > 0.95
    assert sound["matched_auroc"]["value"] == 1
    assert min(sound["contradicting"][name]["value"] for name in ("sensitivity", "specificity")) == 1
    assert sound["contradicting"]["images"] == {"NORMAL": 10, "PNEUMONIA": 10}
    # The metrics are those of the swapped images.
    rows, model = images.rows("test"), Network(proportions)
    label, patient = images.label[rows], images.patient[rows]
    assert (exposed["images"], exposed["threshold"], exposed["factor"]) == (80, 0.4, 1.2)
    swapped = pneumonia_probability(score_swapped(model, images.cache, rows, label, 16, 0, 1.3))
    assert exposed["proportions"]["1.3"] == metrics_at(label, swapped, patient, 0.4)
    matched = pneumonia_probability(score_matched(model, images.cache, rows, label, 16))
    assert exposed["histogram_and_spectrum"] == metrics_at(label, matched, patient, 0.4)


@pytest.mark.filterwarnings("error")
def test_without_training_images_the_appearance_is_cross_fitted():
    alone = Images(train=0, test=80)
    found = check(alone, proportions)
    assert found["vertical"] == "NORMAL" and found["appearance_auroc"]["value"] > 0.85
    few = check(alone, proportions, chosen=slice(24))  # six patients per class
    assert few["proportions"]["1.2"]["auroc"]["value"] is not None
    assert few["appearance_auroc"] == few["matched_auroc"] == NOT_DEFINED
    assert few["contradicting"]["sensitivity"]["value"] is None
    assert check(alone, proportions, chosen=slice(None, None, 2)) is None  # one class


def by_pairs(label, probability, scores, bandwidth):
    won = whole = 0.0
    for i in np.flatnonzero(label == 0):
        for j in np.flatnonzero(label == 1):
            weight = np.exp(-((scores[i] - scores[j]) ** 2) / (2 * bandwidth**2))
            whole += weight
            won += weight * ((probability[j] > probability[i]) + 0.5 * (probability[j] == probability[i]))
    return won / whole if whole else np.nan


def test_the_matched_auroc_is_the_weighted_share_of_pairs_in_every_replicate():
    rng = np.random.default_rng(0)
    label, patient = rng.permutation(np.repeat([0, 1], [6, 8])), np.arange(14) // 2
    scores = rng.normal(2 * label, 1)
    probability = np.round(1 / (1 + np.exp(-scores - rng.normal(0, 1, 14))), 1)  # with ties
    bandwidth = np.std(scores) / 2
    found = matched_auroc(label, probability, patient, scores)
    assert found["value"] == pytest.approx(by_pairs(label, probability, scores, bandwidth))
    counts, place = bootstrap_counts(patient)
    repeated = [np.repeat(np.arange(14), times[place]) for times in counts]
    drawn = [by_pairs(label[rows], probability[rows], scores[rows], bandwidth) for rows in repeated]
    assert found["ci95"] == pytest.approx(percentile_interval(np.array(drawn)))


def test_contradicting_images_are_those_that_look_most_like_the_other_class():
    rng = np.random.default_rng(1)
    label = rng.permutation(np.repeat([0, 1], [130, 240]))
    scores, probability = rng.normal(label, 1), rng.random(370)
    found = contradicting(label, probability, np.arange(370), scores, 0.3)
    assert found["images"] == {"NORMAL": 13, "PNEUMONIA": 24}
    normal = sorted(np.flatnonzero(label == 0), key=lambda row: -scores[row])[:13]
    pneumonia = sorted(np.flatnonzero(label == 1), key=lambda row: scores[row])[:24]
    assert found["specificity"]["value"] == pytest.approx(np.mean(probability[normal] < 0.3))
    assert found["sensitivity"]["value"] == pytest.approx(np.mean(probability[pneumonia] >= 0.3))


# The audit of a data set.


@pytest.fixture(scope="module")
def shifted():
    """200 training and 80 test images, one per patient, with appearance statistics only.

    NORMAL is brighter in both splits, and noisier in test than in train."""
    rng = np.random.default_rng(0)
    label, test = np.arange(280) % 2, np.arange(280) >= 200
    statistics = rng.normal(size=(280, len(STATISTICS)))
    statistics[:, STATISTICS.index("brightness")] -= 3 * label
    statistics[:, STATISTICS.index("noise")] += 4 * (test & (label == 0))
    names = np.array([f"f{row:03d}" for row in range(280)], dtype=object)
    given, plain = np.where(test, "test", "train"), np.full(280, "", dtype=object)
    return Cohort(
        cache=SimpleNamespace(facts={"appearance": statistics}), file=names, source=plain, patient_id=names,
        patient=names, label=label, source_split=given.astype(object), split=given,
        duplicate_group=np.arange(280), reason=plain, notes=[],
    )  # fmt: skip


def test_the_statistics_that_predict_the_label_are_ranked(shifted):
    found = audit_appearance(shifted, score_appearance(shifted))
    statistics, label = shifted.cache.facts["appearance"][:200], shifted.label[:200]
    areas = [roc_auc_score(label, column) for column in statistics.T]
    best = sorted(range(len(areas)), key=lambda one: -abs(areas[one] - 0.5))[:5]
    assert [one["statistic"] for one in found["statistics"]] == [STATISTICS[one] for one in best]
    assert [one["auroc"] for one in found["statistics"]] == pytest.approx(
        [0.5 + abs(areas[one] - 0.5) for one in best], abs=1e-4
    )
    column = statistics[:, STATISTICS.index("brightness")]
    medians = {name: np.median(column[label == index]) for index, name in enumerate(LABELS)}
    assert found["statistics"][0]["median"] == pytest.approx(medians, abs=1e-4)


def test_a_test_split_of_the_sources_is_kept_apart_and_compared_by_class(shifted):
    found = audit_appearance(shifted, score_appearance(shifted))
    train = shifted.cache.facts["appearance"][:200], shifted.label[:200], shifted.patient[:200]
    assert found["images"] == 200
    assert found["auroc"] == auroc(train[1], appearance_scores(*train), train[2])
    normal, pneumonia = (found["test_against_train"][name] for name in LABELS)
    assert normal["value"] > 0.95 and normal["ci95"][0] > 0.9
    assert pneumonia["ci95"][0] < 0.5 < pneumonia["ci95"][1]
    predicts, differs = audit_lines(found)
    assert "NORMAL images are brighter" in predicts and "NORMAL images of test look different" in differs
    # A split that was cut here is audited as a whole.
    cut = dataclasses.replace(shifted, split=np.where(np.arange(280) % 5 == 0, "test", "train"))
    whole = audit_appearance(cut, score_appearance(cut))
    assert (whole["images"], whole["test_against_train"]) == (280, None)
