"""Networks trained on simulated images with a shortcut: one reads it, the other was trained against it."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

from hf_pneumonia.evaluation.appearance import audit_appearance, audit_lines, score_appearance
from hf_pneumonia.evaluation.scoring import score_films
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.training.arguments import parse_recipe

pytestmark = pytest.mark.slow

EPOCHS, BATCH, RATE = 12, 32, 2e-3
STRONG = {"proportions": 0.5, "resolution": 0.4, "zoom": 0.15, "shift": 0.1, "exposure": 0.8, "blur": 1.2}


@pytest.fixture
def one_thread():
    """On images this small a second thread mostly waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _train(images, augmentation: dict, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model, augment = build_model("cnn_improved", 32).train(), Augment(**augmentation)
    rows = np.flatnonzero(np.isin(images.split, ("train", "validation")))
    films, labels = torch.from_numpy(images.store[rows]), torch.from_numpy(images.label[rows])
    steps = EPOCHS * (len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).split(BATCH)[: len(rows) // BATCH]:
            logits = model(network_input(augment(films[batch], labels[batch]))).logits
            optimizer.zero_grad()
            cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


def _auroc(model: torch.nn.Module, images, rows: np.ndarray) -> float:
    logits = score_films(model, images.store, rows, 64)
    return roc_auc_score(images.label[rows], logits[:, 1] - logits[:, 0])


def test_the_plain_recipe_falls_for_the_shortcut_and_training_against_it_does_not(
    one_thread, shortcut_images
):
    images, test = shortcut_images, shortcut_images.rows("test")
    facts = images.store.facts
    # In train wide files are pneumonias; in test half of them are, and the others mislead.
    misleading = test[(facts["width"] > facts["height"])[test] != (images.label[test] == 1)]
    recipe, _ = parse_recipe([str(ROOT / "recipes" / "quickstart.yaml")], default=None)
    plain, strong = _train(images, recipe.augmentation), _train(images, STRONG)
    assert _auroc(plain, images, misleading) < 0.45 and _auroc(strong, images, misleading) > 0.55
    assert _auroc(strong, images, test) > _auroc(plain, images, test)


def test_the_audit_names_the_shortcut(shortcut_images):
    found = audit_appearance(shortcut_images, score_appearance(shortcut_images))
    assert found["auroc"]["ci95"][0] > 0.9
    assert audit_lines(found)[0].startswith("appearance alone predicts the label with AUROC 0.9")
    assert "log(width / height)" in [one["statistic"] for one in found["statistics"]]
