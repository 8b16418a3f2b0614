import json
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import hf_pneumonia.modeling.cnn  # noqa: F401  registers the networks
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import build_model, network_input

NAMES = ["cnn_baseline", "cnn_improved"]


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_are_those_of_the_notebook(name):
    network = timm.create_model(name, num_classes=2)
    shapes = [m.weight.shape for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert shapes == [
        (32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3),
        (128, 256 * 7 * 7), (2, 128),
    ]  # fmt: skip
    norms = [m.num_features for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == ([32, 64, 64, 128, 256] if name == "cnn_improved" else [])


def test_the_answer_is_that_of_the_layers_written_out():
    network = timm.create_model("cnn_baseline", num_classes=2, img_size=50).eval()
    weights = network.state_dict()
    films = torch.randn(2, 3, 50, 50)
    x = films
    for stage in range(5):
        weight, bias = (weights[f"stages.{stage}.0.{key}"] for key in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
        x = torch.nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))  # 0 is the least there is
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    x = (x.reshape(2, -1) @ weights["dense.weight"].T + weights["dense.bias"]).clamp(min=0)
    expected = x @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(network(films), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_they_behave_as_timms_own_networks(name):
    network = timm.create_model(name, num_classes=5, in_chans=1, img_size=(70, 40), drop_rate=0.3).eval()
    films = torch.randn(3, 1, 70, 40)
    features = network.forward_features(films)
    assert features.shape == (3, network.num_features, 3, 2)
    hidden = network.forward_head(features, pre_logits=True)
    assert hidden.shape == (3, network.head_hidden_size)
    assert torch.equal(network.get_classifier()(hidden), network(films)) and network(films).shape == (3, 5)
    config = network.pretrained_cfg
    assert network.get_submodule(config["classifier"]) is network.get_classifier()
    assert network.get_submodule(config["first_conv"]).in_channels == 1
    network.reset_classifier(0)
    assert torch.equal(network(films), hidden) and network.num_classes == 0
    network.reset_classifier(7)
    assert network(films).shape == (3, 7)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_built_for_the_films_size_and_keep_it_in_their_arguments(name, tmp_path):
    model = build_model(name, 50, drop_rate=0.5).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == {"drop_rate": 0.5, "img_size": 50}
    own = timm.create_model(name, num_classes=2, img_size=50).state_dict()
    assert load_file(tmp_path / "model.safetensors").keys() == own.keys()
    films = network_input(torch.randint(0, 256, (2, 50, 50), dtype=torch.uint8))
    with torch.no_grad():
        expected = model(films).logits
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.equal(loaded(films), expected)
        assert torch.equal(AutoModelForImageClassification.from_pretrained(tmp_path)(films).logits, expected)


def test_a_saved_one_can_be_fine_tuned_further_with_a_new_head(tmp_path):
    first = build_model("cnn_improved", 32)
    first.save_pretrained(tmp_path)
    second = build_model("cnn_improved", 32, pretrained=str(tmp_path))
    assert torch.equal(second.timm_model.dense.weight, first.timm_model.dense.weight)
    assert not torch.equal(second.timm_model.head.weight, first.timm_model.head.weight)
    with pytest.raises(UsageError, match="other shapes than cnn_improved at this --image_size"):
        build_model("cnn_improved", 64, pretrained=str(tmp_path))


@pytest.mark.slow
def test_its_module_alone_is_imported_with_it():
    code = "import sys, hf_pneumonia.modeling.cnn; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    ours = [one for one in done.stdout.split() if one.startswith("hf_pneumonia")]
    assert ours == ["hf_pneumonia", "hf_pneumonia.modeling", "hf_pneumonia.modeling.cnn"]
