import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from written import Network

from hf_pneumonia.evaluation.scoring import (
    draw_evenly,
    match_histogram,
    match_spectrum,
    predict_split,
    score_images,
    score_matched,
    score_swapped,
    stretch,
)
from hf_pneumonia.modeling.build import build_model, network_input


def test_images_are_scored_in_the_order_asked_for_changed_or_not(small_images):
    cohort, model = small_images, build_model("resnet10t", 32).train()
    rows = cohort.rows("test")[::-1]
    logits = score_images(model, cohort.cache, rows, batch_size=7)
    inverted = score_images(model, cohort.cache, rows, 7, change=lambda images: 255 - images)
    model.eval()
    images = torch.from_numpy(cohort.cache[rows])
    with torch.no_grad():
        expected, changed = (model(network_input(one)).logits for one in (images, 255 - images))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(inverted, changed, atol=1e-5)
    predictions = predict_split(model, cohort, "test", batch_size=16)
    assert predictions.file == cohort.file[cohort.rows("test")].tolist()
    np.testing.assert_allclose(predictions.probability[::-1], expected.softmax(1)[:, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("normal", "pneumonia", "drawn"),
    [(50, 90, (20, 20)), (5, 90, (5, 35)), (90, 5, (35, 5)), (9, 8, (9, 8)), (0, 50, (0, 40))],
)
def test_images_are_drawn_evenly_where_possible(normal, pneumonia, drawn):
    label = np.random.default_rng(0).permutation(np.repeat([0, 1], [normal, pneumonia]))
    chosen = draw_evenly(label, 40)
    assert tuple(np.bincount(label[chosen], minlength=2)) == drawn
    assert (np.diff(chosen) > 0).all() and np.array_equal(chosen, draw_evenly(label, 40))


def gradients(images: torch.Tensor) -> torch.Tensor:
    """Log ratio of the horizontal to the vertical gradient of an image."""
    down, across = (images.diff(dim=axis).abs().mean((1, 2)) for axis in (1, 2))
    return (across / down).log()


LABEL = np.tile([0, 1], 10)


@pytest.fixture(scope="module")
def fields():
    """Random fields, (20, 32, 32) uint8: class 0 varies faster from top to bottom, class 1 across."""
    coarse = np.random.default_rng(0).integers(0, 256, (20, 40, 40), dtype=np.uint8)
    fields = stretch(coarse, 3, 3)[:, 4:36, 4:36]
    fields[0::2], fields[1::2] = stretch(fields[0::2], across=1.1), stretch(fields[1::2], down=1.1)
    return fields


def analytic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 127 + 60 * np.sin(x / 5) + 50 * np.cos(y / 6 + 1) * np.sin(x / 9)


@pytest.mark.parametrize("across, down", [(1.2, 1.0), (1.0, 1.4), (1.3, 1.1)])
def test_a_stretched_image_shows_the_same_function_about_its_centre(across, down):
    side, middle = np.arange(48.0), 23.5
    image = np.rint(analytic(side[None], side[:, None])).astype(np.uint8)
    expected = analytic(middle + (side[None] - middle) / across, middle + (side[:, None] - middle) / down)
    (found,) = stretch(image[None], across, down)
    assert found.shape == (48, 48) and found.dtype == np.uint8
    assert np.abs(found - expected).max() < 2
    np.testing.assert_array_equal(stretch(image[None])[0], image)


def test_swapped_proportions_reverse_a_network_that_reads_them(fields):
    model, rows = Network(gradients), np.arange(20)
    assert roc_auc_score(LABEL, score_images(model, fields, rows, 7)[:, 1]) == 1
    swapped = score_swapped(model, fields, rows, LABEL, 7, vertical=0, factor=1.4)
    assert roc_auc_score(LABEL, swapped[:, 1]) == 0
    # Stretched the other way, the classes move further apart.
    apart = score_swapped(model, fields, rows, LABEL, 7, vertical=1, factor=1.4)
    assert roc_auc_score(LABEL, apart[:, 1]) == 1
    for index, factors in ((0, {"down": 1.4}), (1, {"across": 1.4})):
        images = torch.from_numpy(stretch(fields[LABEL == index], **factors)).float()[:, None]
        np.testing.assert_allclose(swapped[LABEL == index], model(images).logits.detach(), atol=1e-3)


def radial_means(image: np.ndarray) -> list[float]:
    """Mean amplitude by rounded distance from frequency zero, one frequency at a time."""
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(image)))
    found: dict[int, list[float]] = {}
    for place in np.ndindex(image.shape):
        radius = np.hypot(*(at - side // 2 for at, side in zip(place, image.shape, strict=True)))
        found.setdefault(round(radius), []).append(amplitude[place])
    return [np.mean(found[radius]) for radius in sorted(found)]


@pytest.mark.parametrize("shape", [(32, 32), (31, 31)])
def test_a_matched_image_has_the_partners_radial_spectrum_and_its_own_phases(shape):
    image, partner = np.random.default_rng(0).integers(0, 256, (2, *shape))
    partner = np.cumsum(partner, axis=1) / 40  # with another spectrum
    found = match_spectrum(image, partner)
    np.testing.assert_allclose(radial_means(found), radial_means(partner), rtol=1e-9)
    own, now = np.fft.fft2(image), np.fft.fft2(found)
    np.testing.assert_allclose(now / np.abs(now), own / np.abs(own), atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_matched_image_has_the_partners_histogram_and_its_own_order_of_pixels():
    rng = np.random.default_rng(0)
    values, partner = rng.normal(0, 50, (24, 24)), rng.integers(0, 30, (24, 24)).astype(np.uint8) ** 2
    found = match_histogram(values, partner)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(found.ravel()), np.bincount(partner.ravel()))
    order = np.argsort(values.ravel())
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()
    blank = np.full((24, 24), 7, np.uint8)
    assert match_histogram(match_spectrum(blank, partner), partner).sum() == partner.sum()


def test_every_image_gets_the_gray_values_of_an_image_of_the_other_class_in_any_batch(fields):
    seen = []
    spy = Network(lambda images: seen.extend(images.numpy()) or gradients(images))
    rows = np.arange(20)[::-1]
    logits = score_matched(spy, fields, rows, LABEL[rows], 7)
    np.testing.assert_array_equal(logits, score_matched(Network(gradients), fields, rows, LABEL[rows], 20))
    grays = [np.sort(image, axis=None) for image in fields]
    for row, image in zip(rows, seen, strict=True):
        likeness = [np.corrcoef(np.sort(image, axis=None), own)[0, 1] for own in grays]
        (same,) = np.flatnonzero(np.array(likeness) > 1 - 1e-9)
        assert LABEL[same] == 1 - LABEL[row]
