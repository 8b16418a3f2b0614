"""Augmentation, compared with scipy, Pillow, and formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

from hf_pneumonia.modeling.augment import Augment, mixing, shrink

STRENGTHS = dict(rotation=10, zoom=0.1, proportions=0.3, shift=0.05, resolution=0.5)
STRENGTHS |= dict(blur=1.0, exposure=0.2, noise=0.02)


@pytest.fixture
def images():
    """Two smooth images, with small resampling errors."""
    noise = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    smooth = torch.from_numpy(gaussian_filter(noise, (0, 4, 4)))
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).to(torch.uint8)


@pytest.fixture
def at_the_limit(monkeypatch):
    """Every uniform draw at its upper limit, for results computed by hand."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(size))


def _varied(images, labels=None, seed=0, **strengths):
    torch.manual_seed(seed)
    return Augment(**strengths)(images, labels)


def test_all_steps_give_floats_in_0_to_1_that_depend_on_the_seed(images):
    assert torch.equal(Augment()(images), images.float() / 255)
    before = images.clone()
    result = _varied(images, **STRENGTHS, horizontal_flip=0.5)
    assert result.shape == images.shape and result.dtype == torch.float32
    assert 0 <= result.min() and result.max() <= 1 and torch.equal(images, before)
    assert torch.equal(result, _varied(images, **STRENGTHS, horizontal_flip=0.5))
    assert not torch.equal(result, _varied(images, seed=2, **STRENGTHS, horizontal_flip=0.5))


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_by_class_equals_a_common_strength_for_the_images_of_the_class(images, name):
    strength, labels = STRENGTHS[name], torch.tensor([0, 1])
    both = _varied(images, labels, **{name: (strength, strength / 2)})
    torch.testing.assert_close(both[0], _varied(images, **{name: strength})[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1], _varied(images, **{name: strength / 2})[1], atol=1e-3, rtol=0)
    one = _varied(images, labels, **{name: (0, strength)})
    assert torch.equal(one[0], images[0] / 255) and not torch.equal(one[1], images[1] / 255)
    first, second = _varied(images[:1].expand(2, -1, -1), **{name: strength})
    assert not torch.equal(first, second)  # each image draws its own numbers


def test_a_flip_mirrors_left_and_right(images):
    torch.testing.assert_close(Augment(horizontal_flip=1.0)(images), images.flip(2) / 255, atol=1e-4, rtol=0)


def test_a_rotation_equals_scipys(images, at_the_limit):
    turned = Augment(rotation=20)(images)
    reference = torch.from_numpy(rotate(images[0].float().numpy() / 255, 20, reshape=False, order=1))
    middle = slice(16, 48)
    assert (turned[0] - reference)[middle, middle].abs().max() < 0.01


def test_a_shift_moves_images_by_its_share_of_the_side(images, at_the_limit):
    shifted = Augment(shift=8 / 64)(images)
    torch.testing.assert_close(shifted[:, :56, :56], images[:, 8:, 8:] / 255, atol=1e-4, rtol=0)
    assert not shifted[:, 57:, 57:].any()  # black, like the area outside the collimator


def test_a_zoom_enlarges_about_the_middle(at_the_limit):
    spot = torch.zeros(1, 65, 65, dtype=torch.uint8)
    spot[:, 27:38, 27:38] = 255  # side 11, centred
    assert Augment(zoom=0.5)(spot).sum() == pytest.approx((11 * 1.5) ** 2, rel=0.03)


def test_proportions_widen_an_image_about_the_middle_and_keep_its_area(at_the_limit):
    across = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(2, 64, 64)  # a ramp from left to right
    widened = Augment(proportions=2 * math.log(1.25))(across)[0]
    # Wider by exp(r / 2) = 1.25 and lower by as much: the slope falls, with black rows above and below.
    slope = (widened[32, 40] - widened[32, 24]).item() / 16
    assert slope == pytest.approx(1 / 63 / 1.25, rel=0.02)
    assert widened[:6].max() == 0 and widened[-6:].max() == 0 and widened[8:-8, 32].min() > 0.4


def test_resolution_equals_downsampling_and_upsampling(images, at_the_limit):
    reduced = Augment(resolution=0.5)(images)
    small = F.interpolate(images[None] / 255, (32, 32), mode="bilinear", antialias=True)
    expected = F.interpolate(small, (64, 64), mode="bicubic")[0].clamp(0, 1)
    assert (reduced - expected).abs().max() < 1e-5


def test_the_blur_equals_scipys(images, at_the_limit):
    reference = gaussian_filter(images[0].float().numpy() / 255, 1.5, mode="mirror", truncate=3.4)
    torch.testing.assert_close(Augment(blur=1.5)(images)[0], torch.from_numpy(reference), atol=2e-3, rtol=0)


def test_the_exposure_follows_its_formula(images, at_the_limit):
    values = (images[0] / 255.0).clamp(1e-4, 1) ** math.exp(0.1)
    expected = (values - values.mean()) * math.exp(0.1) + values.mean() + 0.05
    torch.testing.assert_close(Augment(exposure=0.1)(images)[0], expected.clamp(0, 1))


def test_the_noise_has_at_most_the_stated_deviation():
    gray = torch.full((200, 32, 32), 128, dtype=torch.uint8)
    deviations = (_varied(gray, noise=0.05) - 128 / 255).flatten(1).std(1)
    assert 0.045 < deviations.max() < 0.053 and deviations.mean() == pytest.approx(0.025, rel=0.2)


def test_shrunk_images_are_those_of_pillow():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 48, 48), dtype=np.uint8))
    for image, result in zip(images, shrink(images, 20), strict=True):
        expected = Image.fromarray(image.numpy()).resize((20, 20), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected).astype(int) - result.numpy()).max() <= 1


def test_images_are_blended_in_the_shares_of_their_labels():
    images = torch.zeros(4, 3, 8, 8)
    images[1::2] = 1  # PNEUMONIA is white: the mean is its share
    for mix in (mixing(0.5, 0), mixing(0, 1.0), mixing(0.5, 1.0)):
        blended, shares = mix(images, torch.tensor([0, 1, 0, 1]))
        torch.testing.assert_close(blended.mean((1, 2, 3)), shares[:, 1])
    assert mixing(0, 0) is None
