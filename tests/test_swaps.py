from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films
from hf_pneumonia.evaluation.swaps import (
    match_histogram,
    match_spectrum,
    score_matched,
    score_swapped,
    stretch,
)


class Gradients(nn.Module):
    """The more an image changes from left to right, against from top to bottom, the more it has pneumonia."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        down, across = (inputs.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
        margin = self.slope * (across / down).log()
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(margin), margin], 1))


class Images:
    """Random fields, (20, 32, 32) uint8: class 0 varies faster from top to bottom, class 1 across."""

    label = np.tile([0, 1], 10)
    size = 32

    def __init__(self):
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (20, 40, 40), dtype=np.uint8)
        smooth = stretch(coarse, 3, 3)[:, 4:36, 4:36]
        self.images = np.stack([stretch(image[None], *((1.0, 1.1)[:: 1 if label else -1]))[0]
                                for image, label in zip(smooth, self.label, strict=True)])  # fmt: skip

    def __getitem__(self, rows):
        return self.images[np.asarray(rows)]


def analytic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 127 + 60 * np.sin(x / 5) + 50 * np.cos(y / 6 + 1) * np.sin(x / 9)


@pytest.mark.parametrize("across, down", [(1.2, 1.0), (1.0, 1.4), (1.3, 1.1)])
def test_a_stretched_image_shows_the_same_function_about_its_middle(across, down):
    side, middle = np.arange(48.0), 23.5
    image = np.rint(analytic(side[None], side[:, None])).astype(np.uint8)
    expected = analytic(middle + (side[None] - middle) / across, middle + (side[:, None] - middle) / down)
    (found,) = stretch(image[None], across, down)
    assert found.shape == (48, 48) and found.dtype == np.uint8
    assert np.abs(found - expected).max() < 2


def test_a_ramp_keeps_its_middle_and_its_slope_divides_by_the_factor():
    ramp = np.tile(np.arange(20, 20 + 4 * 50, 4, dtype=np.uint8), (50, 1))[None]
    found = stretch(ramp, across=1.25)[0].astype(float)
    assert found.mean() == pytest.approx(ramp.mean(), abs=0.5)
    np.testing.assert_allclose(np.polyfit(np.arange(50), found.mean(0), 1)[0], 4 / 1.25, rtol=1e-3)
    np.testing.assert_array_equal(stretch(ramp, down=1.25), ramp)
    np.testing.assert_array_equal(stretch(ramp), ramp)


def test_a_reader_of_proportions_turns_round_when_they_are_swapped():
    store, model, rows = Images(), Gradients(), np.arange(20)
    plain = score_films(model, store, rows, 7)
    assert roc_auc_score(store.label, plain[:, 1]) == 1
    swapped = score_swapped(model, store, rows, store.label, 7, vertical=0, factor=1.4)
    assert roc_auc_score(store.label, swapped[:, 1]) == 0
    # Stretched the other way, the classes move further apart.
    apart = score_swapped(model, store, rows, store.label, 7, vertical=1, factor=1.4)
    assert roc_auc_score(store.label, apart[:, 1]) == 1
    for index, way in ((0, {"down": 1.4}), (1, {"across": 1.4})):
        chosen = store.label == index
        images = torch.from_numpy(stretch(store.images[chosen], **way)).float()[:, None]
        np.testing.assert_allclose(swapped[chosen], model(images).logits.detach(), atol=1e-3)


def radial_means(image: np.ndarray) -> list[float]:
    """Mean amplitude by the rounded distance from frequency zero, one frequency at a time."""
    height, width = image.shape
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(image)))
    found: dict[int, list[float]] = {}
    for row in range(height):
        for column in range(width):
            radius = ((row - height // 2) ** 2 + (column - width // 2) ** 2) ** 0.5
            found.setdefault(round(radius), []).append(amplitude[row, column])
    return [np.mean(found[radius]) for radius in sorted(found)]


@pytest.mark.parametrize("shape", [(32, 32), (31, 31)])
def test_the_radial_spectrum_is_the_partners_and_the_phases_are_the_images_own(shape):
    image, partner = np.random.default_rng(0).integers(0, 256, (2, *shape))
    partner = np.cumsum(partner, axis=1) / 40  # of another spectrum
    found = match_spectrum(image, partner)
    np.testing.assert_allclose(radial_means(found), radial_means(partner), rtol=1e-9)
    own, now = np.fft.fft2(image), np.fft.fft2(found)
    np.testing.assert_allclose(now / np.abs(now), own / np.abs(own), atol=1e-6)
    np.testing.assert_allclose(match_spectrum(image, image), image, atol=1e-9)


def test_the_histogram_is_exactly_the_partners_and_the_order_of_the_pixels_stays():
    rng = np.random.default_rng(0)
    values, partner = rng.normal(0, 50, (24, 24)), rng.integers(0, 30, (24, 24)).astype(np.uint8) ** 2
    found = match_histogram(values, partner)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(found.ravel()), np.bincount(partner.ravel()))
    order = np.argsort(values.ravel())
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()


@pytest.mark.filterwarnings("error")
def test_a_blank_image_goes_through():
    blank, partner = np.full((16, 16), 7, np.uint8), np.random.default_rng(0).integers(0, 9, (16, 16))
    assert match_histogram(match_spectrum(blank, partner), partner).sum() == partner.sum()


def test_every_image_gets_the_gray_values_of_one_of_the_other_class_whatever_the_batch():
    store, seen = Images(), []

    class Spy(Gradients):
        def forward(self, inputs):
            seen.extend(inputs[:, 0].detach())
            return super().forward(inputs)

    rows = np.arange(20)[::-1]
    logits = score_matched(Spy(), store, rows, store.label[rows], 7)
    np.testing.assert_array_equal(logits, score_matched(Gradients(), store, rows, store.label[rows], 20))
    assert len(seen) == 20 and np.isfinite(pneumonia_probability(logits)).all()
    sorted_grays = [np.sort(image, axis=None) for image in store.images]
    for row, image in zip(rows, seen, strict=True):
        grays = np.sort(image.numpy(), axis=None)
        same = [other for other, own in enumerate(sorted_grays) if np.corrcoef(grays, own)[0, 1] > 1 - 1e-9]
        assert len(same) == 1 and store.label[same[0]] == 1 - store.label[row]
