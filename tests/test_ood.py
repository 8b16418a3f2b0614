import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file
from scipy.spatial.distance import mahalanobis
from scipy.stats import t as students
from sklearn.datasets import load_sample_images

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.data.images import gray_image
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import NOT_ASSESSED, REFUSED, UNLIKE
from hf_pneumonia.inference.ood import (
    Gaussian,
    OODCheck,
    fit_ood_statistics,
    image_problem,
    layout_features,
    load_ood_check,
    watch_stages,
)
from hf_pneumonia.modeling.build import build_model, network_input

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)


def _squares(images: int, seed: int) -> np.ndarray:
    """Return images of one layout, each with its own noise."""
    rng = np.random.default_rng(seed)
    shared = np.add.outer(np.linspace(0, 90, 32), np.abs(np.linspace(-90, 90, 32)))
    return (shared + rng.normal(40, 12, (images, 32, 32))).clip(0, 255).astype(np.uint8)


def _trained_on(images: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(images, 6)) @ np.random.default_rng(9).normal(size=(6, 20))
    return _squares(images, seed), [(mixed + rng.normal(0, 0.1, (images, 20))).astype(np.float32)]


@pytest.fixture(scope="module")
def ood_check() -> OODCheck:
    return fit_ood_statistics(_trained_on(600, 0), _trained_on(400, 1))


def test_the_statistics_are_mean_and_deviation_of_what_timm_extracts_at_each_stage():
    torch.manual_seed(0)
    model = build_model("resnet10t", 64).eval()
    inputs = network_input(torch.from_numpy(IMAGES))
    extractor = timm.create_model("resnet10t", features_only=True).eval()
    extractor.load_state_dict(model.timm_model.state_dict(), strict=False)
    with torch.inference_mode():
        before, stages = model(inputs).logits, extractor(inputs)
        with watch_stages(model.timm_model) as kept:
            assert torch.equal(model(inputs).logits, before)
        model(inputs)  # no longer watched
    assert len(kept) == len(stages) + 1
    # One more: the middle stage, averaged over fields.
    fields, middle = kept.pop(len(stages) // 2), stages[len(stages) // 2]
    torch.testing.assert_close(fields, F.adaptive_avg_pool2d(middle, 4).flatten(1), rtol=1e-4, atol=1e-5)
    for found, maps in zip(kept, stages, strict=True):
        expected = torch.cat([maps.mean((2, 3)), maps.flatten(2).std(2, correction=0)], 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_mambaout", "test_vit"])
def test_networks_with_channels_last_or_tokens_give_statistics_too(name):
    network = timm.create_model(name, num_classes=2).eval()
    with torch.inference_mode(), watch_stages(network) as kept:
        network(torch.randn(2, 3, 160, 160))
    allowed = {times * stage["num_chs"] for stage in network.feature_info for times in (2, 16)}
    assert kept and {one.shape[1] for one in kept} <= allowed
    assert all(one.shape[0] == 2 and torch.isfinite(one).all() for one in kept)


def test_distances_are_mahalanobis_along_the_components_and_the_residual():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 5
    values, vectors = np.linalg.eigh(np.cov(features.T))
    _gaussian = Gaussian(features.mean(0), np.ones(3), vectors.T, values)
    inverse = np.linalg.inv(np.cov(features.T))
    expected = [[mahalanobis(row, features.mean(0), inverse) ** 2, 0] for row in features[:20]]
    np.testing.assert_allclose(_gaussian.distances(features[:20]), expected, rtol=1e-6, atol=1e-9)
    # 3 along the component; 4 and 10 / 2 in the residual.
    _gaussian = Gaussian(np.zeros(3), np.array([1, 1, 2.0]), np.eye(3)[:1], np.array([4.0]))
    np.testing.assert_allclose(_gaussian.distances(np.array([[3.0, 4.0, 10.0]])), [[9 / 4, 16 + 25]])


def test_new_images_pass_and_images_of_another_kind_do_not(ood_check):
    squares, statistics = _trained_on(1000, 2)
    assert np.mean(ood_check.scores(squares, statistics) > 1) < 0.01
    strange = [statistics[0] + np.random.default_rng(3).normal(0, 1, statistics[0].shape)]
    assert np.mean(ood_check.scores(squares, strange) > 1) > 0.99
    assert np.mean(ood_check.scores(np.rot90(squares, axes=(1, 2)), statistics) > 1) > 0.99


def test_a_limit_is_the_conformal_quantile_or_students_prediction_limit_with_a_margin(ood_check):
    found = ood_check.distances(*_trained_on(400, 1))
    for column, limit in zip(found.T, ood_check.limits, strict=True):
        rank = sorted(column)[400 - 1]  # ceil(0.9975 * 401) = 400
        logs = np.log(column)
        predicted = np.exp(logs.mean() + students.ppf(0.99875, 399) * logs.std(ddof=1) * np.sqrt(1 + 1 / 400))
        assert limit == pytest.approx(1.1 * max(rank, predicted))


def test_a_layout_does_not_depend_on_brightness_and_contrast():
    squares = _squares(3, 0)
    darker, flatter = squares - squares.min(), (squares * 0.5 + 20).astype(np.uint8)
    layout = layout_features(squares)
    np.testing.assert_allclose(layout_features(darker), layout, atol=1e-5)
    for one, other in zip(layout_features(flatter), layout, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.999 and one.std() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("damage", ["cut", "NaN", "missing", "shape"])
def test_a_saved_ood_check_scores_the_same_and_a_damaged_one_is_refused(ood_check, tmp_path, damage):
    assert load_ood_check(tmp_path) is None
    ood_check.save(tmp_path)
    images = _trained_on(50, 4)
    np.testing.assert_array_equal(load_ood_check(tmp_path).scores(*images), ood_check.scores(*images))
    file, tensors = tmp_path / "gate.safetensors", ood_check.tensors()
    if damage == "NaN":
        tensors["limits"] = np.full_like(tensors["limits"], np.nan)
    elif damage == "missing":
        del tensors["stage0.scale"]
    elif damage == "shape":
        tensors["stage0.mean"] = tensors["stage0.mean"][:-1]
    save_file(tensors, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UsageError, match="gate.safetensors") as error:
        load_ood_check(tmp_path)
    assert error.value.code == "damaged-ood-check"


def test_colour_low_contrast_few_grays_and_the_dicom_header_are_problems():
    flower = gray_image(Image.fromarray(load_sample_images().images[1]))
    assert "colour" in image_problem(flower)
    image = Image.fromarray(_squares(1, 0)[0])
    assert image_problem(image) == ""
    assert "blank" in image_problem(Image.new("L", (50, 50), 90))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:24] = mask[16:48, 40:56] = 255
    assert "mask" in image_problem(Image.fromarray(mask))
    for info, problem in (
        ({"modality": "CT"}, "CT"),
        ({"body_part": "HAND"}, "hand"),
        ({"view": "LL"}, "side view"),
        ({"modality": "DX", "body_part": "CHEST", "view": "PA"}, ""),
        ({"modality": "<b>", "body_part": "<b>"}, ""),
    ):
        image.info = info
        found = image_problem(image)
        assert problem in found and bool(problem) == bool(found)


def test_the_classifier_reproduces_the_refusals_of_the_report(finished_run):
    report = json.loads((finished_run / "report.json").read_text())["gate"]["films"]
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    rows = (finished_run / "predictions_test.csv").read_text().splitlines()[1:]
    refused = [one.decision in REFUSED for one in classifier([row.split(",")[0] for row in rows])]
    assert report["test"]["films"] == len(refused) and report["validation"]["films"] > 0
    assert report["test"]["refused"] == sum(refused) <= 1


def test_an_inverted_image_is_refused_as_inverted(finished_run, image_folder):
    images = [255 - np.asarray(Image.open(file)) for file in (image_folder / "test" / "NORMAL").iterdir()]
    predictions = PneumoniaClassifier.from_pretrained(finished_run)(images)
    assert {one.decision for one in predictions} <= set(REFUSED)
    assert sum(one.reason.startswith("inverted") for one in predictions) >= len(images) - 1


def test_an_image_unlike_the_training_images_is_not_assessed_unless_it_is_forced(finished_run):
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    strange = np.random.default_rng(0).integers(60, 200, (90, 70), np.uint8)
    plain, forced = classifier(strange), classifier(strange, force=True)
    assert (plain.decision, plain.reason, forced.reason) == (NOT_ASSESSED, UNLIKE, UNLIKE)
    assert forced.decision == classifier.decide(plain.probability)


def test_an_ood_check_of_another_network_is_refused(finished_run, vit_folder, tmp_path):
    build_model("test_resnet", 64).save_pretrained(tmp_path / "other")
    for folder in (tmp_path / "other", vit_folder):
        shutil.copy(finished_run / "gate.safetensors", folder)
        with pytest.raises(UsageError, match="gate.safetensors") as error:
            PneumoniaClassifier.from_pretrained(folder)
        assert error.value.code == "ood-check-mismatch"
