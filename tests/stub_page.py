"""A served page with a stub classifier, shared by all tests of a session."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.inference.classifier import NOT_A_CHEST_XRAY, PneumoniaClassifier, Prediction

# Code and images that a model card must not run or load. Each script sets `window.ran`.
HOSTILE = """---
license: x
---
# A model <script>window.ran = 1</script>

<img src="x" onerror="window.ran = 2"> <svg onload="window.ran = 3"></svg>

<iframe srcdoc="<script>parent.ran = 4</script>"></iframe>

[a](javascript:window.ran=6) [b](data:text/html,<script>window.ran=7</script>) [d](https://example.org/x)

![there](https://elsewhere.example/pixel.png) !![again](https://elsewhere.example/pixel.png)
![by reference][far] [![a link](https://elsewhere.example/pixel.png)](https://example.org)

[far]: https://elsewhere.example/pixel.png

${window.ran = 9} {{window.ran}}

<style>body { display: none }</style> <link rel="stylesheet" href="https://elsewhere.example/style.css">
"""


class StubClassifier(PneumoniaClassifier):
    """Its probability is the mean gray. Waits for `free`, and on white images for `white`."""

    def __init__(self) -> None:
        self.name, self.image_size, self.notes = "stub", 64, []
        self.threshold, self.band = 0.5, (0.4, 0.6)
        self.trade_off = {
            "threshold": [0.1, 0.3, 0.5, 0.7, 0.9],
            "sensitivity": [1.0, 0.95, 0.9, 0.6, 0.1],
            "specificity": [0.0, 0.6, 0.8, 0.9, 1.0],
        }
        self.operating_point = {"threshold": 0.5, "sensitivity": 0.9, "specificity": 0.8}
        self.operating_point["uncertain"] = {"low": 0.4, "high": 0.6, "risk": 0.02}
        self.free, self.white = threading.Event(), threading.Event()
        self.free.set()
        self.white.set()

    def predict_squares(self, squares, heat_map=False, problems=None, force=False):
        assert self.free.wait(60) and (np.min(squares) < 250 or self.white.wait(60))
        predictions = []
        for square, problem in zip(squares, problems or [""] * len(squares), strict=True):
            probability = float(square.mean() / 255)
            decision = NOT_A_CHEST_XRAY if problem else self.decide(probability)
            shown = (square / 255).astype(np.float32) if heat_map else None
            label = LABELS[int(probability >= self.threshold)]
            predictions.append(Prediction(label, probability, self.threshold, decision, problem, shown))
        return predictions


@pytest.fixture(scope="session")
def page_server(tmp_path_factory):
    """The whole page as app.py serves it: its address, classifier, upload folder and Blocks.

    The model's card is HOSTILE, and it has one plot.
    """
    from hf_pneumonia.page.decoder import Decoder
    from hf_pneumonia.page.guard import UploadFolder
    from hf_pneumonia.page.one_image import simulated_examples
    from hf_pneumonia.page.page import build_page, served

    classifier, model = StubClassifier(), tmp_path_factory.mktemp("model")
    (model / "README.md").write_text(HOSTILE)
    (model / "plots").mkdir()
    Image.new("L", (900, 600)).save(model / "plots" / "roc.png")
    with Decoder(seconds=10) as decoder, UploadFolder() as uploads:
        page = build_page(classifier, decoder.read, simulated_examples(), str(model))
        with served(page, uploads) as (address,):
            yield SimpleNamespace(address=address, classifier=classifier, uploads=uploads, page=page)
