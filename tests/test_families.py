"""Any timm architecture works by flag: one of each family through train.py, and out again by other tools."""

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from train import main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_a_network_of_each_family_trains_and_is_loaded_by_both_libraries(name, film_folder, tmp_path):
    run = tmp_path / name
    main([
        "--model", name, "--pretrained", "false", "--dataset", str(film_folder), "--output_dir", str(run),
        "--image_size", "64", "--drop_rate", "0.1", "--per_device_train_batch_size", "8",
        "--max_steps", "2", "--checks", "false",
    ])  # fmt: skip
    with open(run / "predictions_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = [Image.open(row["file"]).convert("RGB") for row in rows]
    films = AutoImageProcessor.from_pretrained(run)(images)["pixel_values"]
    assert films.shape == (30, 3, 64, 64)
    with torch.no_grad():
        logits = AutoModelForImageClassification.from_pretrained(run).eval()(films).logits
        network = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
        assert torch.equal(network(films), logits)
    assert load_file(run / "model.safetensors").keys() == network.state_dict().keys()
    own = np.array([float(row["probability"]) for row in rows])
    np.testing.assert_allclose(logits.softmax(1)[:, 1], own, atol=1e-5)
