import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.quick_start import TimmNetwork, load_to_answer
from hf_pneumonia.modeling.saved import load_model


def _inputs(side: int) -> torch.Tensor:
    films = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0))
    return network_input(films.to(torch.uint8))


def _changed(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "architecture", ["resnet10t", "cnn_improved", "test_vit", "test_efficientnet", "test_convnext"]
)
def test_a_network_of_ours_is_the_one_that_transformers_loads_to_the_last_bit(architecture, tmp_path):
    torch.manual_seed(0)
    model = build_model(architecture, 64, drop_rate=0.3)
    model.config.pneumonia = {"threshold": 0.3, "uncertain": {"low": 0.2, "high": 0.4}}
    model.save_pretrained(tmp_path / "run")
    expected, found = load_model(str(tmp_path / "run")), load_to_answer(str(tmp_path / "run"))
    assert type(found.model) is TimmNetwork
    for name in ("name", "image_size", "operating_point", "notes", "processor", "folder"):
        assert getattr(found, name) == getattr(expected, name)
    ours, theirs = found.model.timm_model.state_dict(), expected.model.timm_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        assert torch.equal(found.model(_inputs(64)).logits, expected.model(_inputs(64)).logits)
    squares = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    both = [PneumoniaClassifier(saved).predict_squares(squares) for saved in (found, expected)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    "change",
    [
        {"label_names": ["PNEUMONIA", "NORMAL"]},
        {"pneumonia": None},
        {"pneumonia": {"threshold": 0.4}, "model_args": None},
    ],
)
def test_another_model_than_ours_is_loaded_as_ever(timm_folder, change):
    _changed(timm_folder, **change)
    expected, found = load_model(str(timm_folder)), load_to_answer(str(timm_folder))
    assert type(found.model) is type(expected.model)
    assert (found.notes, found.operating_point) == (expected.notes, expected.operating_point)
    with torch.no_grad():
        assert torch.equal(found.model(_inputs(64)).logits, expected.model(_inputs(64)).logits)


def test_a_model_of_transformers_own_is_loaded_as_ever(vit_folder):
    assert load_to_answer(str(vit_folder)).processor is not None


def _without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("fc.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "half the weights": lambda folder: (folder / "model.safetensors").write_bytes(bytes(100)),
    "a tensor less": _without_a_tensor,
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "another architecture": lambda folder: _changed(folder, architecture="resnet18"),
    "no architecture": lambda folder: _changed(folder, architecture="resnet_of_nobody"),
    "another threshold": lambda folder: _changed(folder, pneumonia={"threshold": 7}),
    "other labels": lambda folder: _changed(folder, label_names=["cat", "dog"]),
    "a pickle": lambda folder: _changed(folder, model_args={"checkpoint_path": "/x.pth"}),
    "an argument of nobody": lambda folder: _changed(folder, model_args={"of_nobody": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_the_mistake_that_it_always_was(timm_folder, damage):
    DAMAGES[damage](timm_folder)
    with pytest.raises(UsageError) as expected:
        load_model(str(timm_folder))
    with pytest.raises(UsageError) as found:
        load_to_answer(str(timm_folder))
    assert str(found.value) == str(expected.value)
