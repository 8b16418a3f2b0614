import numpy as np
import pytest
from PIL import Image
from written import predicted

from hf_pneumonia.evaluation.plots import overlay_heat_map, plot_run
from hf_pneumonia.evaluation.report import build_report

COUNTS = {"test": {"patients": 40, "classes": {"NORMAL": 20, "PNEUMONIA": 20}}}
EPOCH = {"epoch": 1, "train": {"loss": 1, "accuracy": 0.5}, "validation": {"loss": 1, "accuracy": 0.5}}


class Images:
    """A cache of black images."""

    def __getitem__(self, rows):
        return np.zeros((len(rows), 8, 8), np.uint8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [np.arange(40) % 2, np.ones(40, int), np.zeros(40, int)])
def test_every_plot_is_drawn_for_two_classes_and_for_one(labels, tmp_path):
    probability = np.random.default_rng(0).random(40)
    predictions = {"test": predicted(labels, probability)}
    if labels.any():
        predictions["validation"] = predicted(np.arange(40) % 2, probability)
    facts = {"history": [EPOCH], "kept_epoch": 1, "data": {"splits": COUNTS}}
    point = {"threshold": 0.3, "target_sensitivity": 0.95, "temperature": 1.5, "intercept": 0.1}
    plot_run(tmp_path, build_report(predictions, point, **facts), predictions, Images(), np.arange(40))
    for name in ("roc", "reliability", "confusion_matrix", "samples", "curves", "class_distribution"):
        assert np.ptp(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))) > 100


@pytest.mark.parametrize("gray", [0, 90, 255])
def test_the_opacity_of_a_heat_map_is_proportional_to_its_heat(gray):
    ramp = np.arange(256)[None] / 255
    share = 0.7 * np.arange(256)[None, :, None] / 255
    expected = share * np.array([255, 140, 0]) + (1 - share) * gray
    found = np.asarray(overlay_heat_map(Image.new("L", (256, 1), gray), ramp), float)
    assert np.abs(found - expected).max() <= 1.5 and (found[0, 0] == gray).all()
