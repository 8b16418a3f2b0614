"""Where the network looked, against networks whose evidence is at a known place."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.heatmap import heat_maps, logits_and_heat_maps


class _Wrapper(nn.Module):
    """What is used of transformers' wrapper: the network's attribute."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.timm_model = network


class _Pooled(nn.Module):
    """Brightness of 8 x 8 cells is channel 0 and darkness channel 1; white is pneumonia."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    def forward_features(self, inputs):
        cells = self.pool(inputs[:, :1])
        return torch.cat([cells, 1 - cells], 1)

    def forward_head(self, features):
        return self.head(features.mean((2, 3)))


class _ChannelsLast(_Pooled):
    output_fmt = "NHWC"

    def forward_features(self, inputs):
        return super().forward_features(inputs).permute(0, 2, 3, 1)

    def forward_head(self, features):
        return self.head(features.mean((1, 2)))


class _Attend(nn.Module):
    """The class token takes the mean of all tokens."""

    def forward(self, tokens):
        return tokens.mean(1, keepdim=True).expand_as(tokens)


class _ClassToken(_Pooled):
    global_pool, num_prefix_tokens = "token", 1

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Identity(), _Attend())

    def forward_features(self, inputs):
        patches = super().forward_features(inputs).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([torch.zeros_like(patches[:, :1]), patches], 1))

    def forward_head(self, features):
        return self.head(features[:, 0])


class _ListOfMaps(_Pooled):
    def forward_features(self, inputs):
        return [super().forward_features(inputs)]


def films_of(size: int) -> torch.Tensor:
    """(3, 3, size, size) network input of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)
    return network_input(torch.from_numpy(noise))


def network(architecture: str, size: int) -> nn.Module:
    torch.manual_seed(2)
    model = build_model(architecture, size).eval()
    weight = nn.init.normal_(model.timm_model.get_classifier().weight)
    weight.data[1] += 1  # mostly in favour of pneumonia, so that no map is empty
    return model


@pytest.fixture(scope="module")
def resnet():
    return network("resnet10t", 96)


@pytest.fixture(scope="module")
def inputs():
    return films_of(96)


@pytest.mark.parametrize("kind", [_Pooled, _ChannelsLast, _ClassToken])
@pytest.mark.parametrize("row, column", [(0, 0), (2, 5), (7, 7)])
def test_the_map_is_hottest_where_the_evidence_is(kind, row, column):
    film = torch.zeros(1, 3, 64, 64)
    film[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1  # one white cell
    (heat,) = heat_maps(_Wrapper(kind()), film)
    assert divmod(int(heat.argmax()), 64)[0] // 8 == row and int(heat.argmax()) % 64 // 8 == column
    assert heat.shape == (64, 64) and heat.dtype == torch.float32 and heat.min() == 0 and heat.max() == 1


class _Difference(nn.Module):
    """The one number that is explained, as captum wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.model(inputs).logits
        return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize(
    "architecture, size, layer",
    [
        ("resnet10t", 96, "layer3"),  # the last map has 3 x 3 places
        ("resnet10t", 192, "layer4"),
        ("cnn_baseline", 96, "stages.3"),
        ("test_efficientnet", 192, "bn2"),
        ("test_convnext", 192, "norm_pre"),
    ],
)
def test_maps_are_captums(architecture, size, layer):
    model, inputs = network(architecture, size), films_of(size)
    captum = LayerGradCam(_Difference(model), model.timm_model.get_submodule(layer))
    cam = captum.attribute(inputs, relu_attributions=True).detach()
    cam = nn.functional.interpolate(cam, (size, size), mode="bilinear", align_corners=False)[:, 0]
    found = heat_maps(model, inputs)
    torch.testing.assert_close(found, cam / cam.amax((1, 2), keepdim=True), atol=1e-5, rtol=1e-5)
    assert found.amax((1, 2)).tolist() == [1, 1, 1] and found.std() > 0.01


@pytest.mark.parametrize("architecture", ["test_vit", "test_mambaout", "test_nfnet"])
def test_other_families_have_maps_too(architecture, inputs):
    heat = heat_maps(network(architecture, 96), inputs)
    assert heat.shape == (3, 96, 96) and torch.isfinite(heat).all()
    assert heat.amax((1, 2)).tolist() == [1, 1, 1] and (heat.amin((1, 2)) < 1).all()


def test_nothing_in_favour_is_a_map_of_zeros(inputs):
    model = network("resnet10t", 96)
    model.timm_model.fc.weight.data = torch.stack([torch.ones(512), -torch.ones(512)])
    assert heat_maps(model, inputs).count_nonzero() == 0


def test_the_logits_that_come_with_a_map_are_the_models_and_images_do_not_change_each_other(resnet, inputs):
    logits, together = logits_and_heat_maps(resnet, inputs)
    with torch.inference_mode():
        assert torch.equal(logits, resnet(inputs).logits)
    singly = torch.cat([heat_maps(resnet, one[None]) for one in inputs])
    torch.testing.assert_close(together, singly, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("inference", [False, True])
def test_the_network_is_left_as_it_was(resnet, inputs, inference):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    with torch.inference_mode(inference):
        heat = heat_maps(resnet, inputs.clone())
        assert torch.is_inference_mode_enabled() == inference
    assert not heat.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in resnet.parameters())


@pytest.mark.parametrize(
    "make, size, problem",
    [
        (lambda: build_model("resnet10t", 96), 16, "no places"),
        (lambda: _Wrapper(nn.Linear(2, 2)), 32, "does not part"),
        (lambda: ResNetForImageClassification(ResNetConfig(depths=[1] * 4)), 32, "does not part"),
        (lambda: _Wrapper(_ListOfMaps()), 64, "list"),
    ],
)
def test_what_has_no_map_says_so(make, size, problem):
    with pytest.raises(ValueError, match=problem):
        heat_maps(make(), torch.zeros(1, 3, size, size))


def test_answers_that_are_not_finite_are_not_explained(resnet):
    with pytest.raises(ValueError, match="not finite"):
        heat_maps(resnet, torch.full((1, 3, 96, 96), torch.nan))
