"""Heat maps, compared with captum and with networks of known evidence."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from trainings import changed, weights
from transformers import ResNetConfig, ResNetForImageClassification

from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.heatmap import heat_maps, logits_and_heat_maps


class _Attend(nn.Module):
    """Attention that replaces every token by the mean of all tokens."""

    def forward(self, tokens):
        return tokens.mean(1, keepdim=True).expand_as(tokens)


class _Cells(nn.Module):
    """Feature map of 8 x 8 cells: channel 0 is brightness, channel 1 darkness; white is PNEUMONIA."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        self.output_fmt = "NHWC" if kind == "channels last" else "NCHW"
        if kind == "class token":
            self.global_pool, self.num_prefix_tokens = "token", 1
            self.blocks = nn.Sequential(nn.Identity(), _Attend())

    def forward_features(self, inputs):
        cells = nn.functional.avg_pool2d(inputs[:, :1], 8)
        maps = torch.cat([cells, 1 - cells], 1).permute(0, 2, 3, 1)
        if hasattr(self, "blocks"):
            return self.blocks(nn.functional.pad(maps.flatten(1, 2), (0, 0, 1, 0)))
        return maps if self.output_fmt == "NHWC" else maps.permute(0, 3, 1, 2)

    def forward_head(self, features):
        if hasattr(self, "blocks"):
            return self.head(features[:, 0])
        return self.head(features.mean((1, 2) if self.output_fmt == "NHWC" else (2, 3)))


def network(architecture: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with random weights and (3, 3, size, size) input of noise."""
    torch.manual_seed(2)
    model = build_model(architecture, size).eval()
    weight = nn.init.normal_(model.timm_model.get_classifier().weight)
    weight.data[1] += 1  # mostly evidence for pneumonia: no map is empty
    noise = np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)
    return model, network_input(torch.from_numpy(noise))


@pytest.mark.parametrize("kind", ["channels first", "channels last", "class token"])
@pytest.mark.parametrize("row, column", [(0, 0), (2, 5), (7, 7)])
def test_the_map_is_hottest_where_the_evidence_is(kind, row, column):
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1  # one white cell
    (heat,) = heat_maps(_Cells(kind), image)
    assert divmod(int(heat.argmax()), 64)[0] // 8 == row and int(heat.argmax()) % 64 // 8 == column
    assert heat.shape == (64, 64) and heat.dtype == torch.float32 and heat.min() == 0 and heat.max() == 1


def margin(model: nn.Module):
    """Return the function that captum explains: the difference of the logits."""
    return lambda inputs: model(inputs).logits @ torch.tensor([-1.0, 1.0])


@pytest.mark.parametrize(
    "architecture, size, layer",
    [
        ("resnet10t", 96, "layer3"),  # the last map has 3 x 3 cells
        ("resnet10t", 192, "layer4"),
        ("cnn_baseline", 96, "stages.3"),
        ("test_efficientnet", 192, "bn2"),
        ("test_convnext", 192, "norm_pre"),
        *((name, 96, None) for name in ("test_vit", "test_mambaout", "test_nfnet")),
    ],
)
def test_maps_equal_those_of_captum(architecture, size, layer):
    model, inputs = network(architecture, size)
    found = heat_maps(model, inputs)
    assert found.shape == (3, size, size) and torch.isfinite(found).all()
    assert found.amax((1, 2)).tolist() == [1, 1, 1] and found.std() > 0.01
    if layer:
        captum = LayerGradCam(margin(model), model.timm_model.get_submodule(layer))
        cam = captum.attribute(inputs, relu_attributions=True).detach()
        cam = nn.functional.interpolate(cam, (size, size), mode="bilinear", align_corners=False)[:, 0]
        torch.testing.assert_close(found, cam / cam.amax((1, 2), keepdim=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inference", [False, True])
def test_maps_come_with_the_logits_and_do_not_modify_the_network(inference):
    model, inputs = network("resnet10t", 96)
    before = weights(model)
    with torch.inference_mode(inference):
        logits, together = logits_and_heat_maps(model, inputs.clone())
        assert torch.is_inference_mode_enabled() == inference and not together.requires_grad
    with torch.inference_mode():
        assert torch.equal(logits, model(inputs).logits)
    singly = torch.cat([heat_maps(model, image[None]) for image in inputs])
    torch.testing.assert_close(together, singly, atol=1e-4, rtol=1e-3)
    assert not changed(before, model.state_dict())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_no_evidence_gives_a_map_of_zeros_and_nan_is_an_error():
    model, inputs = network("resnet10t", 96)
    model.timm_model.fc.weight.data = torch.stack([torch.ones(512), -torch.ones(512)])
    assert heat_maps(model, inputs).count_nonzero() == 0
    with pytest.raises(ValueError, match="not finite"):
        heat_maps(model, torch.full((1, 3, 96, 96), torch.nan))


def test_a_network_without_a_feature_map_is_an_error():
    not_timm = ResNetForImageClassification(ResNetConfig(depths=[1] * 4))
    for model, problem in ((build_model("resnet10t", 96), "larger images"), (not_timm, "as in timm")):
        with pytest.raises(ValueError, match=problem):
            heat_maps(model, torch.zeros(1, 3, 16, 16))
