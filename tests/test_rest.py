"""What is behind a place of a network, against the whole; maps of answers, against a pass of their own."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.heatmap import MapOfAnswer, heat_maps
from hf_pneumonia.modeling.packing import packed
from hf_pneumonia.modeling.rest import rest_behind


def films(size: int, count: int = 3) -> torch.Tensor:
    """(count, 3, size, size) network input of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (count, size, size), np.uint8)
    return network_input(torch.from_numpy(noise))


def model_of(architecture: str, size: int) -> nn.Module:
    torch.manual_seed(2)
    model = build_model(architecture, size).eval().requires_grad_(False)
    nn.init.normal_(model.timm_model.get_classifier().weight)
    return model


def output_at(network: nn.Module, place: str, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = []
    hook = network.get_submodule(place).register_forward_hook(
        lambda _, __, output: kept.append(output.clone())
    )
    with torch.no_grad():
        answer = network(inputs)
    hook.remove()
    return kept[0], answer


@pytest.mark.parametrize(
    "architecture, place",
    [
        ("resnet18", "layer1"),
        ("resnet18", "layer3"),
        ("cnn_improved", "stages.2"),
        ("efficientnet_b0", "blocks.4"),
    ],
)
def test_the_rest_of_a_network_answers_as_the_whole_to_films_it_was_not_tried_with(architecture, place):
    network = model_of(architecture, 64).timm_model
    before = {name: type(module) for name, module in network.named_modules()}
    rest = rest_behind(network, place, films(64, 1))
    features, expected = output_at(network, place, films(64).flip(2))
    with torch.no_grad():
        torch.testing.assert_close(rest(features), expected)
    assert {name: type(module) for name, module in network.named_modules()} == before
    own = {id(tensor) for tensor in network.parameters()}
    assert {id(tensor) for tensor in rest.parameters()} < own  # none is held twice
    assert not any(module._forward_hooks for module in network.modules())


class _More(nn.Module):
    """Adds, outside of its modules, what the place's own output does not hold."""

    def __init__(self, shortcut: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.shortcut, self.shared = shortcut, shared

    def forward(self, inputs):
        outputs = self.first(inputs)
        outputs = self.first(outputs) if self.shared else outputs
        outputs = outputs + inputs[..., 1:-1, 1:-1] if self.shortcut else outputs
        return self.second(outputs).mean((2, 3))


@pytest.mark.parametrize("kind", [{"shortcut": True}, {"shared": True}])
def test_what_is_no_chain_of_modules_has_no_rest(kind):
    torch.manual_seed(0)
    assert rest_behind(_More(**kind), "first", films(16)) is None
    assert rest_behind(_More(), "first", films(16)) is not None


@pytest.mark.parametrize(
    "architecture, size, place",
    [
        ("resnet18", 96, "layer3"),
        ("resnet18", 192, "layer4"),
        ("resnet50", 96, "layer3"),
        ("resnet50", 192, "layer4"),
        ("cnn_baseline", 96, "stages.3"),
        ("cnn_improved", 96, "stages.3"),
        ("mobilenetv3_small_100", 96, "blocks.3"),
        ("efficientnet_b0", 192, "bn2"),
        ("convnext_atto", 96, "stages.2"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_maps_of_answers_are_those_of_a_pass_of_their_own(architecture, size, place, quick):
    model, inputs = model_of(architecture, size), films(size)
    mapper = MapOfAnswer.of(model, inputs[:1])
    asked = packed(model, inputs[:1]) if quick else model
    with torch.inference_mode():
        with mapper.features(asked.timm_model) as kept:
            asked(inputs)
        asked(inputs)  # not watched any more
    assert mapper.place == place and len(kept) == 1
    found, expected = mapper.maps(kept[0], size), heat_maps(model, inputs)
    torch.testing.assert_close(found, expected, atol=1e-3 if quick else 1e-5, rtol=1e-3)
    assert not found.requires_grad


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "hrnet_w18_small"])
def test_networks_whose_map_is_no_modules_output_are_left_to_a_pass_of_its_own(architecture):
    assert MapOfAnswer.of(build_model(architecture, 96).eval(), films(96, 1)) is None
