import warnings

import numpy as np
import pytest
from PIL import Image

from hf_pneumonia.evaluation.plots import plot_run
from hf_pneumonia.evaluation.report import build_report
from hf_pneumonia.evaluation.scoring import Predictions

COUNTS = {"test": {"patients": 40, "classes": {"NORMAL": 20, "PNEUMONIA": 20}}}
EPOCH = {"epoch": 1, "train": {"loss": 1, "accuracy": 0.5}, "validation": {"loss": 1, "accuracy": 0.5}}


class Films:
    """A store of black films."""

    def __getitem__(self, rows):
        return np.zeros((len(rows), 8, 8), np.uint8)


def _predictions(labels):
    names = [str(i) for i in range(len(labels))]
    return Predictions(names, names, labels, np.random.default_rng(0).random(len(labels)))


@pytest.mark.parametrize("splits", [("validation", "test"), ("test",)])
@pytest.mark.parametrize("labels", [np.arange(40) % 2, np.ones(40, int), np.zeros(40, int)])
def test_every_picture_is_drawn_without_a_warning_for_two_classes_and_for_one(splits, labels, tmp_path):
    predictions = {name: _predictions(labels if name == "test" else np.arange(40) % 2) for name in splits}
    facts = {"history": [EPOCH], "kept_epoch": 1, "data": {"splits": COUNTS}}
    point = {"threshold": 0.3, "target_sensitivity": 0.95, "temperature": 1.5, "intercept": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_run(tmp_path, build_report(predictions, point, **facts), predictions, Films(), np.arange(40))
    for name in ("roc", "reliability", "confusion_matrix"):
        assert np.ptp(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))) > 100
