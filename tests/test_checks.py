"""Robustness, shortcut, subgroup and error checks, on images with known properties."""

import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score
from torch import nn
from written import Network, predicted

from hf_pneumonia.data import phantom
from hf_pneumonia.evaluation import checks as corruptions
from hf_pneumonia.evaluation.checks import (
    CORRUPTIONS,
    black_out,
    check_robustness,
    check_shortcuts,
    check_subgroups,
    family_of,
    keep_masks,
    run_checks,
    write_checks,
)
from hf_pneumonia.evaluation.metrics import metrics_at
from hf_pneumonia.evaluation.scoring import Predictions, pneumonia_probability, predict_split, score_images
from hf_pneumonia.modeling.build import build_model

# The corruptions.


@pytest.fixture
def clouds():
    """Smooth noise, (4, 56, 56) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (4, 7, 7), np.uint8)
    return np.stack([Image.fromarray(one).resize((56, 56), Image.Resampling.BICUBIC) for one in small])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_in_any_batch_and_grows_with_its_level(name, clouds):
    change, _, clean, levels = CORRUPTIONS[name]
    before = clouds.copy()
    for level in levels:
        together = change(clouds, level)
        assert together.shape == clouds.shape and together.dtype == np.uint8
        np.testing.assert_array_equal(together, np.concatenate([change(one[None], level) for one in clouds]))
    np.testing.assert_array_equal(clouds, before)
    if name != "jpeg":
        np.testing.assert_array_equal(change(clouds, clean), clouds)
    images = np.kron(clouds, np.ones((4, 4), np.uint8))  # 224 x 224
    distance = {level: np.abs(change(images, level).astype(float) - images).mean() for level in levels}
    for side in (-1, 1):  # away from the clean level, in either direction
        ordered = sorted((level for level in levels if (level - clean) * side > 0), key=lambda x: x * side)
        distances = [distance[level] for level in ordered]
        assert distances == sorted(distances) and all(far > 0 for far in distances)


def test_blur_is_in_pixels_at_224(clouds):
    (found,) = corruptions.blur(clouds[:1], 8)  # 2 px here
    expected = Image.fromarray(clouds[0]).filter(ImageFilter.GaussianBlur(2))
    assert (
        np.abs(found - np.asarray(expected, dtype=float))[8:-8, 8:-8].max() <= 4
    )  # Pillow approximates with box filters


def test_noise_has_the_given_deviation_and_differs_between_images():
    gray = np.stack([np.full((200, 200), level, np.uint8) for level in (127, 128)])
    grain = corruptions.noise(gray, 0.05) - gray.astype(float)
    assert grain.std() == pytest.approx(0.05 * 255, rel=0.03)
    assert grain.mean() == pytest.approx(0, abs=0.2)
    assert np.corrcoef(grain[0].ravel(), grain[1].ravel())[0, 1] == pytest.approx(0, abs=0.05)


def test_jpeg_exposure_rotation_and_resolution_are_in_their_units(clouds):
    file = io.BytesIO()
    Image.fromarray(clouds[0]).save(file, "JPEG", quality=20)
    np.testing.assert_array_equal(corruptions.jpeg(clouds, 20)[0], np.asarray(Image.open(file)))
    gray = np.array([[[0, 64, 128, 255]]], np.uint8)
    assert corruptions.exposure(gray, 2).tolist() == [[[0, 16, 64, 255]]]
    assert corruptions.exposure(gray, 0.5).tolist() == [[[0, 128, 181, 255]]]
    np.testing.assert_array_equal(corruptions.rotation(clouds, 90), np.rot90(clouds, axes=(1, 2)))
    board = np.indices((56, 56)).sum(0).astype(np.uint8)[None] % 2 * 255
    assert (
        np.ptp(corruptions.resolution(board, 112)) <= 1
    )  # half the size: each box holds two pixels of each gray


@pytest.mark.filterwarnings("error")
def test_each_level_has_the_metrics_of_the_corrupted_images(small_images):
    model = Network(lambda images: images.mean((1, 2)))  # the brighter, the more pneumonia
    rows, cache = small_images.rows("test"), small_images.cache
    scored = predict_split(model, small_images, "test", 8)
    threshold = float(np.median(scored.probability))
    result = check_robustness(model, cache, rows, scored, threshold, batch_size=30)
    assert result["films"] == 30 and list(result)[2:] == list(CORRUPTIONS)
    for name, (_, _, clean, levels) in CORRUPTIONS.items():
        found = {one["level"]: one for one in result[name]["levels"]}
        assert list(found) == sorted([clean, *levels]) and result[name]["clean"] == clean
        plain = metrics_at(scored.label, scored.probability, scored.patient_id, threshold)
        assert found[clean] == {"level": clean, **plain}
    darker = result["exposure"]["levels"][-1]
    logits = score_images(model, cache, rows, 8, lambda images: corruptions.exposure(images, 2))
    probability = pneumonia_probability(logits)
    assert darker == {"level": 2, **metrics_at(scored.label, probability, scored.patient_id, threshold)}
    assert darker["sensitivity"]["value"] == 0, "a darker image is called normal"


# The shortcuts.


class Patches:
    """Gray images, (40, 50, 50) uint8; the second half, the pneumonias, have a bright patch."""

    size = 50

    def __init__(self, *patch: slice):
        self.images = np.full((40, 50, 50), 100, np.uint8)
        self.images[20:, patch[0], patch[1]] = 200

    def __getitem__(self, rows):
        return self.images[np.asarray(rows)]


def shortcuts(*patch: slice) -> dict:
    label = np.repeat([0, 1], 20)
    scored = predicted(label, label * 0.8 + 0.1)
    model = Network(lambda images: 10 * images.mean((1, 2)))
    return check_shortcuts(model, Patches(*patch), np.arange(40), scored, 16)


def test_masking_the_lungs_hides_a_lesion_and_masking_the_corners_hides_a_marker():
    lungs, corner = shortcuts(slice(20, 30), slice(10, 20)), shortcuts(slice(0, 4), slice(3, 4))
    areas = {name: one["auroc"]["value"] for name, one in lungs.items()}
    assert areas.pop("lungs_blacked_out") == 0.5 and set(areas.values()) == {1.0}
    assert lungs["as_they_are"]["mean_probability"] == pytest.approx({"NORMAL": 0.1, "PNEUMONIA": 0.9})
    areas = {name: one["auroc"]["value"] for name, one in corner.items()}
    assert areas["lungs_blacked_out"] == 1.0
    assert areas["corners_blacked_out"] == areas["lungs_only"] == 0.5


@pytest.mark.parametrize("size", [64, 224])
def test_the_masks_have_the_areas_of_their_definitions(size):
    masks = keep_masks(size)
    np.testing.assert_array_equal(masks["lungs_only"], ~masks["lungs_blacked_out"])
    assert masks["lungs_only"].mean() == pytest.approx(0.8 * 0.84, abs=0.02)
    assert masks["borders_blacked_out"].mean() == pytest.approx(0.9**2, abs=0.03)
    assert masks["corners_blacked_out"].mean() == pytest.approx(1 - 4 * 0.2**2, abs=0.02)


def test_the_box_holds_the_lesions_of_simulated_images():
    lesions = [
        image.lesion for patient in range(1, 11) for image in phantom.simulate_patient(patient, size=64)
    ]
    lesions = np.stack(lesions).astype(np.uint8)
    assert black_out(lesions, keep_masks(64)["lungs_only"]).sum() / lesions.sum() > 0.97


# The subgroups.

NAMES = ("IM-{}-0001.jpeg", "NORMAL2-IM-{}-0001.jpeg", "/f/person{}_bacteria_1.jpeg", "person{}_virus_2.jpeg")


def test_each_family_and_each_source_has_its_own_metrics():
    # Twenty images per family of the Guangzhou data set, two images per patient, two sources.
    file = [name.format(number) for name in NAMES for number in range(20)]
    label = np.repeat([0, 0, 1, 1], 20)
    probability = np.clip(np.random.default_rng(0).normal(0.35 + 0.3 * label, 0.2), 0, 1)
    scored = Predictions(file, [f"{index // 2}" for index in range(80)], label, probability)
    sources, families = check_subgroups(scored, ["east", "west"] * 40, 0.5).values()
    assert list(families) == ["IM", "NORMAL-IM", "person-bacteria", "person-virus"]
    assert (family_of("00012.png"), family_of("Zoë 2.png")) == ("numbers", "Zoë")
    virus = families["person-virus"]
    assert (virus["films"], virus["patients"]) == (20, 10)
    assert virus["classes"] == {"NORMAL": 0, "PNEUMONIA": 20}
    assert virus["sensitivity"]["value"] == pytest.approx(np.mean(scored.probability[60:] >= 0.5))
    assert virus["specificity"]["value"] is virus["specificity"]["ci95"] is None
    against = np.r_[0:40, 60:80]
    area = roc_auc_score(scored.label[against], scored.probability[against])
    assert virus["auroc"]["value"] == pytest.approx(area)
    assert virus["auroc_against"] == "all NORMAL images"
    assert families["IM"]["auroc_against"] == "all PNEUMONIA images"
    assert list(sources) == ["east", "west"] and sources["west"]["auroc_against"] == "own images"
    area = roc_auc_score(scored.label[1::2], scored.probability[1::2])
    assert sources["west"]["auroc"]["value"] == pytest.approx(area)


def test_only_large_families_of_several_patients_are_reported():
    sizes = [*range(10, 24), 9]  # 14 families with one patient per image, and one with too few images
    file = [f"{chr(97 + index)}{n}.png" for index, size in enumerate(sizes) for n in range(size)]
    patient = [*file, *["ann"] * 30]
    file += [f"ann{n}.png" for n in range(30)]
    label = np.arange(len(file)) % 2
    found = check_subgroups(Predictions(file, patient, label, label / 2), ["one"] * len(file), 0.5)
    assert list(found["families"]) == [chr(97 + index) for index in range(3, 14)]
    assert found["sources"] == {}


# All checks together.


@pytest.fixture(scope="module")
def checked(small_images):
    """Model, images, predictions and the results of the checks."""
    torch.manual_seed(0)
    model = build_model("resnet10t", 32)
    nn.init.normal_(model.timm_model.fc.weight)
    predictions, images = {}, small_images
    for split in ("test", "validation"):  # all correct except the first of each class
        rows = images.rows(split)
        label = images.label[rows]
        probability = np.where(label == 1, 0.8, 0.2)
        probability[[np.argmax(label == 0), np.argmax(label == 1)]] = 0.9, 0.1
        predictions[split] = Predictions(images.file[rows], images.patient[rows], label, probability)
    checks = run_checks(model, images, predictions, 0.5, 32)
    return SimpleNamespace(model=model, images=images, predictions=predictions, checks=checks)


def test_the_results_are_plain_values_of_the_first_split_without_names_of_files_and_patients(
    checked, tmp_path
):
    checks, text = checked.checks, json.dumps(checked.checks, allow_nan=False)
    assert json.loads(text) == checks
    assert list(checks)[2:] == ["appearance", "shortcuts", "robustness", "subgroups", "errors"]
    for split in checked.predictions.values():
        assert not any(name in text for name in (*split.file, *split.patient_id))
    assert checks["split"] == "test" and checks["shortcuts"]["as_they_are"]["films"] == 30
    found = {"miss": 1, "false_alarm": 1, "suspected_label_error": 2}
    assert checks["errors"] == {"test": {"films": 30, **found}, "validation": {"films": 20, **found}}
    assert set(checks["subgroups"]["families"]) == {"IM", "person-bacteria"}
    write_checks(tmp_path, checks, checked.model, checked.images, checked.predictions)
    written = {path.name for path in tmp_path.rglob("*.*")}
    assert written == {"errors.csv", "errors.png", "appearance.png", "robustness.png", "shortcuts.png"}
    assert (tmp_path / "errors" / "errors.csv").read_text().count(",miss\n") == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_ten_images_of_one_class_without_an_error_are_checked(checked, tmp_path, label):
    rows = checked.images.rows("test")[checked.predictions["test"].label == label][:10]
    split = np.full(len(checked.images.split), "", dtype=object)
    split[rows] = "test"
    images = dataclasses.replace(checked.images, split=split)
    scored = Predictions(images.file[rows], ["p"] * 10, images.label[rows], images.label[rows] * 0.9)
    checks = run_checks(checked.model, images, {"test": scored}, 0.5, 32)
    assert checks["appearance"] is None
    assert checks["shortcuts"]["as_they_are"]["auroc"]["value"] is None
    write_checks(tmp_path, checks, checked.model, images, {"test": scored})
    assert (tmp_path / "errors" / "errors.csv").read_text().count("\n") == 1
