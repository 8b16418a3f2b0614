"""Training on images with a shortcut: strong augmentation keeps the network from learning it."""

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
    """Train the quickstart recipe with these flags."""
    args, _ = parse_recipe([*FLAGS, *flags], default=ROOT / "recipes" / "quickstart.yaml")
    torch.manual_seed(0)
    model = build_model("cnn_improved", 32)
    datasets = [ImageDataset(images, split) for split in ("train", "validation")]
    PneumoniaTrainer(model, args, *datasets, Augment(**args.augmentation)).train()
    return model


def _auroc(model: torch.nn.Module, images, rows: np.ndarray) -> float:
    logits = score_images(model, images.cache, rows, 64)
    return roc_auc_score(images.label[rows], logits[:, 1] - logits[:, 0])


@pytest.mark.slow
def test_the_plain_recipe_learns_the_shortcut_and_strong_augmentation_does_not(shortcut_images, tmp_path):
    images, test = shortcut_images, shortcut_images.rows("test")
    facts = images.cache.facts
    # In train all wide files are PNEUMONIA, in test half of them: in the other half the shortcut misleads.
    misleading = test[(facts["width"] > facts["height"])[test] != (images.label[test] == 1)]
    out = ("--output_dir", str(tmp_path))
    plain, strong = _train(images, *out), _train(images, *out, *STRONG)
    assert _auroc(plain, images, misleading) < 0.45 and _auroc(strong, images, misleading) > 0.55
    assert _auroc(strong, images, test) > _auroc(plain, images, test)
