"""Networks trained on simulated images with a shortcut: one reads it, the other was trained against it."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.scoring import score_images
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.image_dataset import ImageDataset
from hf_pneumonia.training.trainer import PneumoniaTrainer

FLAGS = (
    "--image_size 32 --num_train_epochs 12 --learning_rate 2e-3 --bf16 false --eval_strategy no "
    "--save_strategy no --load_best_model_at_end false"
).split()
STRONG = "--proportions 0.5 --resolution 0.4 --zoom 0.15 --shift 0.1 --exposure 0.8 --blur 1.2".split()


def _train(images, *flags: str) -> torch.nn.Module:
    """The network of the quickstart recipe with these flags."""
    args, _ = parse_recipe([*FLAGS, *flags], default=ROOT / "recipes" / "quickstart.yaml")
    torch.manual_seed(0)
    model, images = (
        build_model("cnn_improved", 32),
        [ImageDataset(images, s) for s in ("train", "validation")],
    )
    PneumoniaTrainer(model, args, *images, Augment(**args.augmentation)).train()
    return model


def _auroc(model: torch.nn.Module, images, rows: np.ndarray) -> float:
    logits = score_images(model, images.cache, rows, 64)
    return roc_auc_score(images.label[rows], logits[:, 1] - logits[:, 0])


@pytest.mark.slow
def test_the_plain_recipe_falls_for_the_shortcut_and_training_against_it_does_not(shortcut_images, tmp_path):
    images, test = shortcut_images, shortcut_images.rows("test")
    facts = images.cache.facts
    # In train wide files are pneumonias; in test half of them are, and the others mislead.
    misleading = test[(facts["width"] > facts["height"])[test] != (images.label[test] == 1)]
    out = ("--output_dir", str(tmp_path))
    plain, strong = _train(images, *out), _train(images, *out, *STRONG)
    assert _auroc(plain, images, misleading) < 0.45 and _auroc(strong, images, misleading) > 0.55
    assert _auroc(strong, images, test) > _auroc(plain, images, test)
