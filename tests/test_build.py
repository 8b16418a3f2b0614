"""Networks from timm: saving, loading, input, calibration, local weights, and errors."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForImageClassification

import hf_pneumonia.modeling.cnn  # noqa: F401  registers networks
from hf_pneumonia.data.images import read_image, squash
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import build_model, network_input, scale_logits


def images_of(size: int) -> torch.Tensor:
    return network_input(torch.randint(0, 256, (2, size, size), dtype=torch.uint8))


SIZED = {"drop_rate": 0.5, "img_size": 96}


@pytest.mark.parametrize(
    "architecture, arguments",
    [
        ("resnet10t", {}),
        ("test_convnext", {"drop_rate": 0.5}),
        ("test_vit", SIZED),
        ("cnn_baseline", SIZED),
        ("cnn_improved", SIZED),
    ],
)
def test_timm_and_transformers_load_the_saved_folder_with_the_same_logits(architecture, arguments, tmp_path):
    model = build_model(architecture, 96, arguments.get("drop_rate", 0)).eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert load_file(tmp_path / "model.safetensors").keys() == loaded.state_dict().keys()
    images = images_of(96)
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(loaded(images), expected)
        assert torch.equal(AutoModelForImageClassification.from_pretrained(tmp_path)(images).logits, expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == ["NORMAL", "PNEUMONIA"] and config["model_args"] == arguments


@pytest.mark.parametrize("size", [(130, 95), (64, 64), (40, 200)])
def test_the_input_equals_timms_evaluation_transform_to_the_last_bit(size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    config = build_model("resnet10t.c3_in1k", 64).config.pretrained_cfg
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config))
    stored = torch.from_numpy(squash(read_image(tmp_path / "image.png"), 64).copy())[None]
    assert torch.equal(network_input(stored)[0], transform(Image.open(tmp_path / "image.png").convert("RGB")))
    assert torch.equal(network_input(stored.float() / 255), network_input(stored))  # as from the augmentation


# One head, two heads of a distilled transformer, a convolution, and a head with more layers.
@pytest.mark.parametrize(
    "architecture", ["resnet10t", "deit_tiny_distilled_patch16_224", "test_convnext", "test_mambaout"]
)
def test_logits_are_scaled_and_the_one_of_class_1_is_shifted(architecture):
    model, images = build_model(architecture, 64).eval(), images_of(64)
    with torch.no_grad():
        before = model(images).logits
        scale_logits(model, 0.25, -1.5)
        torch.testing.assert_close(model(images).logits, before / 4 + torch.tensor([0, -1.5]))


@pytest.mark.parametrize("classes", [1000, 2])  # ImageNet's, and those of an earlier run
def test_weights_of_a_local_folder_fill_all_layers_except_the_head(tmp_path, classes):
    source = timm.create_model("resnet10t", num_classes=classes)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = build_model("resnet10t", 64, pretrained=str(tmp_path))
    assert torch.equal(model.timm_model.conv1[0].weight, source.conv1[0].weight)
    assert model.timm_model.fc.weight.shape == (2, 512)


def test_a_folder_with_unsuitable_weights_is_an_error(tmp_path):
    shapes = timm.create_model("resnet10t").state_dict() | {"conv1.0.weight": torch.zeros(1)}
    for weights, code, named in (
        (save(timm.create_model("resnet18").state_dict()), "weights-mismatch", "architecture"),
        (save(shapes), "weights-mismatch", "shapes"),
        (b"\xff" * 50, "unreadable-weights", "safetensors"),
    ):
        (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(UsageError, match=f"--pretrained .*{named}") as error:
            build_model("resnet10t", 64, pretrained=str(tmp_path))
        assert error.value.code == code


@pytest.mark.parametrize(
    "architecture, size, pretrained, code, named",
    [
        ("resnet1", 64, "false", "unknown-architecture", "Did you mean .*resnet1"),
        ("convnext-tiny", 64, "false", "unknown-architecture", r"Did you mean convnext_tiny\?"),
        ("resnet18.foo", 64, "false", "unknown-architecture", "--model resnet18.foo"),
        ("test_vit", 40, "false", "unsupported-image-size", "--image_size 40"),
        ("coat_tiny", 64, "false", "shared-weights", "--model coat_tiny"),
        ("resnet10t.c3_in1k", 64, "true", "weights-unavailable", "--pretrained true"),
        # A pickle from a URL, and an architecture without published weights.
        ("vit_huge_patch14_gap_224", 224, "true", "weights-unavailable", "safetensors"),
        ("cnn_improved", 64, "true", "weights-unavailable", "--pretrained false"),
    ],
)
def test_an_unsuitable_architecture_is_an_error_before_the_training(
    architecture, size, pretrained, code, named
):
    with pytest.raises(UsageError, match=named) as error:
        build_model(architecture, size, pretrained=pretrained)
    assert error.value.code == code


# The project's own networks.


def test_the_cnns_have_the_layers_of_the_notebook_and_one_has_batchnorm():
    shapes = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3)]
    for name, batchnorms in (("cnn_baseline", []), ("cnn_improved", [32, 64, 64, 128, 256])):
        modules = list(timm.create_model(name, num_classes=2).modules())
        weights = [m.weight.shape for m in modules if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        assert weights == [*shapes, (128, 256 * 7 * 7), (2, 128)]
        assert [m.num_features for m in modules if isinstance(m, torch.nn.BatchNorm2d)] == batchnorms


def test_the_logits_equal_those_of_the_layers_written_out():
    network = timm.create_model("cnn_baseline", num_classes=2, img_size=50).eval()
    weights = network.state_dict()
    images = torch.randn(2, 3, 50, 50)
    x = images
    for stage in range(5):
        weight, bias = (weights[f"stages.{stage}.0.{key}"] for key in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
        x = torch.nn.functional.pad(
            x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        )  # 0 is the minimum after the ReLU
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    x = (x.reshape(2, -1) @ weights["dense.weight"].T + weights["dense.bias"]).clamp(min=0)
    expected = x @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_a_saved_cnn_can_be_fine_tuned_at_the_same_size(tmp_path):
    first = build_model("cnn_improved", 32)
    first.save_pretrained(tmp_path)
    second = build_model("cnn_improved", 32, pretrained=str(tmp_path))
    assert torch.equal(second.timm_model.dense.weight, first.timm_model.dense.weight)
    with pytest.raises(UsageError, match="--image_size") as error:
        build_model("cnn_improved", 64, pretrained=str(tmp_path))
    assert error.value.code == "weights-mismatch"
