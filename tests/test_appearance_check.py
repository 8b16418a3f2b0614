import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

from hf_pneumonia.data.appearance import measure_appearance
from hf_pneumonia.evaluation import appearance_check as module
from hf_pneumonia.evaluation.appearance_check import (
    appearance_lines,
    check_appearance,
    contradicting,
    matched_auroc,
)
from hf_pneumonia.evaluation.bootstrap import bootstrap_counts
from hf_pneumonia.evaluation.figures import metrics_at
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films
from hf_pneumonia.evaluation.swaps import score_matched, score_swapped

NOTHING = {"value": None, "ci95": None}


class Network(nn.Module):
    """Answers by one number of an image."""

    def __init__(self, read):
        super().__init__()
        self.slope, self.read = nn.Parameter(torch.ones(())), read

    def forward(self, inputs):
        margin = self.slope * self.read(inputs[:, 0])
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(margin), margin], 1))


def proportions(images):
    """Sharper across than down, as a wide image is when it is squashed."""
    return 20 * (images.diff(dim=2).abs().mean((1, 2)) / images.diff(dim=1).abs().mean((1, 2))).log()


def lesion(images):
    """Brighter in the middle than on the whole."""
    side = images.shape[1]
    middle = images[:, side // 2 - 3 : side // 2 + 3, side // 2 - 3 : side // 2 + 3]
    return 10 * (middle.mean((1, 2)) - images.mean((1, 2))) - 6


class Films:
    """Chests of 32 pixels of 40 to 48 (normal) or 52 to 60 (pneumonia) by 45, squashed; pneumonias have a
    bright spot in the middle. `train` comes first."""

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
        self.images = np.stack(images)
        self.facts = {"appearance": np.stack(statistics)}
        self.store = self

    def __getitem__(self, rows):
        return self.images[np.asarray(rows)]

    def rows(self, split):
        return np.flatnonzero(self.split == split)


def check(films, read, threshold=0.5, chosen=slice(None)):
    rows, model = films.rows("test")[chosen], Network(read)
    probability = pneumonia_probability(score_films(model, films, rows, 16))
    return check_appearance(
        model, films, rows, films.label[rows], probability, films.patient[rows], threshold, 16
    )


@pytest.fixture(scope="module")
def films():
    return Films(train=80, test=80)


def test_a_network_that_reads_proportions_is_exposed_and_one_that_reads_a_lesion_is_not(films):
    exposed, sound = check(films, proportions), check(films, lesion)
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


def test_each_metric_is_that_of_the_swapped_images(films):
    found, rows, model = check(films, proportions, 0.4), films.rows("test"), Network(proportions)
    label, patient = films.label[rows], films.patient[rows]
    assert found["images"] == 80 and found["threshold"] == 0.4 and found["factor"] == 1.2
    swapped = pneumonia_probability(score_swapped(model, films, rows, label, 16, 0, 1.3))
    assert found["proportions"]["1.3"] == metrics_at(label, swapped, patient, 0.4)
    matched = pneumonia_probability(score_matched(model, films, rows, label, 16))
    assert found["histogram_and_spectrum"] == metrics_at(label, matched, patient, 0.4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.filterwarnings("error")
def test_without_training_images_the_appearance_is_cross_fitted(films):
    alone = Films(train=0, test=80)
    found = check(alone, proportions)
    assert found["vertical"] == "NORMAL" and found["appearance_auroc"]["value"] > 0.85
    few = check(alone, proportions, chosen=slice(24))  # of six patients of a class
    assert few["proportions"]["1.2"]["auroc"]["value"] is not None
    assert few["appearance_auroc"] == few["matched_auroc"] == NOTHING
    assert few["contradicting"]["sensitivity"]["value"] is None
    assert len(appearance_lines(few)) == 2
    assert check(alone, proportions, chosen=slice(None, None, 2)) is None  # of one class
    assert appearance_lines(None) == []


def drawn(n=30, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat([0, 1], [n // 3, n - n // 3]))
    scores = rng.normal(2 * label, 1)
    probability = np.round(1 / (1 + np.exp(-scores - rng.normal(0, 1, n))), 1)  # with ties
    return label, probability, np.arange(n) // 2, scores


def by_pairs(label, probability, scores, bandwidth):
    won = whole = 0.0
    for i in np.flatnonzero(label == 0):
        for j in np.flatnonzero(label == 1):
            weight = np.exp(-((scores[i] - scores[j]) ** 2) / (2 * bandwidth**2))
            whole += weight
            won += weight * (
                1.0 if probability[j] > probability[i] else 0.5 * (probability[j] == probability[i])
            )
    return won / whole if whole else np.nan


def test_the_matched_auroc_is_the_weighted_share_of_pairs_in_every_replicate(monkeypatch):
    label, probability, patient, scores = drawn()
    replicates = []

    def spy(value, values):
        replicates.extend(values)
        return {"value": value}

    monkeypatch.setattr(module, "figure", spy)
    bandwidth = np.std(scores) / 2
    value = matched_auroc(label, probability, patient, scores)["value"]
    assert value == pytest.approx(by_pairs(label, probability, scores, bandwidth))
    counts, place = bootstrap_counts(patient)
    for number in range(0, 2000, 250):
        again = np.repeat(np.arange(len(label)), counts[number][place])  # laid out
        expected = by_pairs(label[again], probability[again], scores[again], bandwidth)
        assert replicates[number] == pytest.approx(expected, nan_ok=True)


def test_the_matched_auroc_falls_for_who_ranks_by_appearance_and_keeps_what_is_independent_of_it():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 300)
    scores = rng.normal(3 * label, 1)
    patient = np.arange(600)
    by_appearance, other = 1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(-rng.normal(3 * label, 1)))
    assert roc_auc_score(label, by_appearance) > 0.97
    found = matched_auroc(label, by_appearance, patient, scores)
    assert found["ci95"][0] < found["value"] < found["ci95"][1] < 0.95
    kept = matched_auroc(label, other, patient, scores)
    assert kept["value"] == pytest.approx(roc_auc_score(label, other), abs=0.02)


def test_images_that_contradict_their_label_are_those_that_look_most_like_the_other_class():
    rng = np.random.default_rng(1)
    label = rng.permutation(np.repeat([0, 1], [130, 240]))
    scores, probability = rng.normal(label, 1), rng.random(370)
    found = contradicting(label, probability, np.arange(370), scores, 0.3)
    assert found["images"] == {"NORMAL": 13, "PNEUMONIA": 24}
    normal = sorted((row for row in range(370) if label[row] == 0), key=lambda row: -scores[row])[:13]
    pneumonia = sorted((row for row in range(370) if label[row] == 1), key=lambda row: scores[row])[:24]
    assert found["specificity"]["value"] == pytest.approx(np.mean(probability[normal] < 0.3))
    assert found["sensitivity"]["value"] == pytest.approx(np.mean(probability[pneumonia] >= 0.3))
    low, high = found["sensitivity"]["ci95"]
    assert low < found["sensitivity"]["value"] < high


@pytest.mark.filterwarnings("error")
def test_a_class_of_few_images_has_no_rate_on_those_that_contradict_their_label():
    label, scores = np.repeat([0, 1], [25, 19]), np.arange(44.0)
    found = contradicting(label, np.full(44, 0.2), np.arange(44), scores, 0.5)
    assert found["images"] == {"NORMAL": 10, "PNEUMONIA": 0}
    assert found["specificity"]["value"] == 1 and found["sensitivity"]["value"] is None
    few = contradicting(label[:5], np.zeros(5), np.arange(5), scores[:5], 0.5)
    assert few["sensitivity"]["value"] is few["specificity"]["value"] is None
