import numpy as np
import pytest
from PIL import Image

from hf_pneumonia.evaluation.plots import lay_over, plot_run
from hf_pneumonia.evaluation.report import build_report
from hf_pneumonia.evaluation.scoring import Predictions

COUNTS = {"test": {"patients": 40, "classes": {"NORMAL": 20, "PNEUMONIA": 20}}}
EPOCH = {"epoch": 1, "train": {"loss": 1, "accuracy": 0.5}, "validation": {"loss": 1, "accuracy": 0.5}}


class Films:
    """A store of black images."""

    def __getitem__(self, rows):
        return np.zeros((len(rows), 8, 8), np.uint8)


def _predictions(labels):
    names = [str(i) for i in range(len(labels))]
    return Predictions(names, names, labels, np.random.default_rng(0).random(len(labels)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [np.arange(40) % 2, np.ones(40, int), np.zeros(40, int)])
def test_every_picture_is_drawn_for_two_classes_and_for_one(labels, tmp_path):
    predictions = {"test": _predictions(labels)}
    if labels.any():
        predictions["validation"] = _predictions(np.arange(40) % 2)
    facts = {"history": [EPOCH], "kept_epoch": 1, "data": {"splits": COUNTS}}
    point = {"threshold": 0.3, "target_sensitivity": 0.95, "temperature": 1.5, "intercept": 0.1}
    plot_run(tmp_path, build_report(predictions, point, **facts), predictions, Films(), np.arange(40))
    for name in ("roc", "reliability", "confusion_matrix", "samples", "curves", "class_distribution"):
        assert np.ptp(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))) > 100


# What is left of linear RGB without the long-, the middle- and the short-wave cones: Machado, Oliveira,
# Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency, IEEE TVCG 2009, table 1.
PROTAN = [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998]
DEUTAN = [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.011820, 0.042940, 0.968881]
TRITAN = [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.303900]
EYES = [np.eye(3), *(np.reshape(one, (3, 3)) for one in (PROTAN, DEUTAN, TRITAN))]

TO_XYZ = np.reshape([0.41246, 0.35758, 0.18044, 0.21267, 0.71515, 0.07218, 0.01933, 0.11919, 0.95030], (3, 3))
JUST_NOTICED = 2.3  # a difference in CIELAB


def lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, (n, 3), white being D65."""
    xyz = colours.clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], 1
    )


def linear(pixels: np.ndarray) -> np.ndarray:
    values = pixels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def ramp() -> Image.Image:
    return Image.fromarray(np.arange(256, dtype=np.uint8)[None])


def test_heat_is_blended_with_the_image_by_as_much_as_it_is_hot():
    for gray in (0, 90, 255):
        share = 0.7 * np.arange(256)[None, :, None] / 255
        expected = share * np.array([255, 140, 0]) + (1 - share) * gray
        found = np.asarray(lay_over(Image.new("L", (256, 1), gray), ramp()), float)
        assert np.abs(found - expected).max() <= 1.5
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8))
    cold = lay_over(image, Image.new("L", image.size))
    assert cold.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(cold), np.asarray(image.convert("RGB")))


def test_more_heat_is_seen_as_more_on_every_gray_by_the_colour_blind_too():
    for gray in range(0, 256, 51):
        laid = linear(np.asarray(lay_over(Image.new("L", (256, 1), gray), ramp()), float)[0])
        for eye in EYES:
            colours = lab(laid @ eye.T)
            assert np.linalg.norm(colours[32::32] - colours[:-32:32], axis=1).min() > JUST_NOTICED
            from_film = np.linalg.norm(colours[::32] - colours[0], axis=1)
            assert (np.diff(from_film) > 0).all() and from_film[-1] > 10 * JUST_NOTICED
