import copy
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from hf_pneumonia.modeling import packing
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.features import watch_stages
from hf_pneumonia.modeling.packing import PackedConv2d, packed

FILMS = torch.randint(0, 256, (5, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def _trained(architecture: str) -> nn.Module:
    """With statistics as after a training: fresh ones hide what goes wrong in folding them."""
    torch.manual_seed(0)
    model = build_model(architecture, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval().to(memory_format=torch.channels_last)


@needs_onednn
@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "resnet50", "cnn_improved", "mobilenetv3_small_050", "densenet121", "convnext_atto"],
)
def test_a_packed_network_answers_as_the_network(architecture):
    model = _trained(architecture)
    inputs = network_input(FILMS)
    quick = packed(model, inputs[:1])
    assert quick is not model and any(isinstance(module, PackedConv2d) for module in quick.modules())
    with torch.inference_mode():
        for some in (inputs, inputs[:1], network_input(FILMS[:2, :48, :40])):
            torch.testing.assert_close(quick(some).logits, model(some).logits, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("architecture", ["resnet18", "cnn_improved", "ghostnet_050", "efficientnet_b0"])
def test_what_the_gate_sees_of_a_packed_network_is_what_it_sees_of_the_network(architecture):
    """ghostnet names its first convolution itself as a stage, before what is folded into others."""
    model, inputs = _trained(architecture), network_input(FILMS)
    quick = packed(model, inputs[:1])
    assert quick is not model
    seen = []
    with torch.inference_mode():
        for one in (model, quick):
            with watch_stages(one.timm_model) as statistics:
                one(inputs)
            seen.append(statistics)
    assert len(seen[0]) > 3
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)


@needs_onednn
def test_a_network_of_which_no_weight_would_be_left_is_kept_as_it_is():
    model = _trained("dla34")  # its head is a convolution, too, and transformers asks a weight for the device
    assert packed(model, network_input(FILMS[:1])) is model


@needs_onednn
def test_in_bfloat16_it_is_as_near_to_float32_as_the_network_is():
    model = _trained("resnet18")
    inputs = network_input(FILMS)
    half = copy.deepcopy(model).bfloat16()
    quick = packed(half, inputs[:1].bfloat16())
    if quick is half:
        pytest.skip("this processor has no bfloat16")
    with torch.inference_mode():
        exact = model(inputs).logits
        off = [(one(inputs.bfloat16()).logits.float() - exact).abs().max() for one in (half, quick)]
    assert off[1] <= 2 * off[0] + 1e-3


@needs_onednn
def test_normalisation_and_relu_are_folded_but_not_a_relu_behind_a_shortcut():
    block = packed(_trained("resnet18"), network_input(FILMS[:1])).timm_model.layer1[0]
    kinds = [type(block.get_submodule(name)) for name in ("conv1", "bn1", "act1", "conv2", "bn2", "act2")]
    assert kinds == [PackedConv2d, nn.Identity, nn.Identity, PackedConv2d, nn.Identity, nn.ReLU]
    assert (block.conv1.then, block.conv2.then) == ("relu", "none")


@needs_onednn
def test_the_first_convolution_is_fed_one_channel_where_films_are_gray_and_three_where_not():
    model = _trained("resnet18")
    assert packed(model, network_input(FILMS[:1])).timm_model.conv1.channels == 1
    tinted = network_input(FILMS[:1]) * torch.tensor([1.0, 0.9, 1.1]).view(1, 3, 1, 1)
    assert packed(model, tinted).timm_model.conv1.channels == 3


@needs_onednn
def test_channels_that_are_zero_for_one_film_are_still_looked_at_for_others():
    """A squeeze whose units are all dead on one film gives equal channels to the convolution behind it."""
    model = _trained("mobilenetv3_small_050")
    quick = packed(model, network_input(FILMS[:1]))
    convs = [module for module in quick.modules() if isinstance(module, PackedConv2d)]
    assert [conv.channels for conv in convs].count(1) == 1
    black = network_input(torch.zeros(1, 64, 64, dtype=torch.uint8))
    quick = packed(model, black)
    assert quick is not model
    with torch.inference_mode():
        inputs = network_input(FILMS)
        torch.testing.assert_close(quick(inputs).logits, model(inputs).logits, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_a_layer_that_is_passed_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, inputs: torch.Tensor) -> SimpleNamespace:
            hidden = self.norm(self.conv(inputs))
            return SimpleNamespace(logits=self.norm(self.conv(hidden) + hidden).mean((2, 3)))

    torch.manual_seed(0)
    twice = Twice().eval()
    quick = packed(twice, network_input(FILMS[:1]))
    assert quick is not twice and type(quick.norm) is nn.BatchNorm2d and type(quick.conv) is nn.Conv2d


@needs_onednn
def test_the_network_is_left_as_it_is_and_other_layers_are_shared_with_it():
    model = _trained("resnet18").bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = network_input(FILMS).bfloat16()
    quick = packed(model, inputs[:1])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert quick.timm_model.fc.weight is model.timm_model.fc.weight


def test_what_can_not_be_packed_is_the_network_itself(monkeypatch):
    model, inputs = _trained("resnet18"), network_input(FILMS[:1])
    double = copy.deepcopy(model).double()
    assert packed(double, inputs.double()) is double
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(model, inputs) is model
    monkeypatch.undo()
    monkeypatch.setattr(
        packing, "_pack", lambda *_: (_ for _ in ()).throw(AttributeError("no such operator"))
    )
    assert packed(model, inputs) is model


@needs_onednn
def test_a_network_that_answers_otherwise_when_packed_is_kept_as_it_is(monkeypatch):
    model = _trained("resnet18")
    monkeypatch.setattr(PackedConv2d, "forward", lambda self, inputs: _plain(self, inputs) + 1)
    assert packed(model, network_input(FILMS[:1])) is model


_plain = PackedConv2d.forward


@needs_onednn
def test_padding_of_other_kinds_is_left_alone():
    network = timm.create_model("tf_efficientnet_b0", num_classes=2).eval()  # pads as TensorFlow does
    odd = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d
    ]
    assert odd and not any(packing._is_plain(module) for module in odd)
    assert not packing._is_plain(nn.Conv2d(1, 1, 3, padding="same"))
    assert not packing._is_plain(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
