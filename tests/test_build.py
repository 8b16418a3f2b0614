import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_pneumonia.data.film import film_array
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import build_model, has_bias, network_input, scale_logits


def films_of(size: int) -> torch.Tensor:
    return network_input(torch.randint(0, 256, (2, size, size), dtype=torch.uint8))


@pytest.fixture(scope="module")
def small():
    return build_model("resnet10t.c3_in1k", 64, drop_rate=0.5)


def test_the_saved_folder_holds_timms_own_keys_and_no_pickle(small, tmp_path):
    small.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    own = timm.create_model("resnet10t").state_dict()
    assert load_file(tmp_path / "model.safetensors").keys() == own.keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == {"drop_rate": 0.5} and config["label_names"] == ["NORMAL", "PNEUMONIA"]


@pytest.mark.parametrize("architecture", ["resnet10t", "test_vit", "test_convnext"])
def test_timm_loads_the_saved_folder_and_answers_the_same_at_another_input_size(architecture, tmp_path):
    model = build_model(architecture, 96).eval()
    model.save_pretrained(tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    films = films_of(96)
    with torch.no_grad():
        torch.testing.assert_close(loaded(films), model(films).logits)
    # timm unpacks the arguments: empty and never null.
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == (
        {"img_size": 96} if architecture == "test_vit" else {}
    )


@pytest.mark.parametrize("size", [(130, 95), (64, 64), (40, 200)])
def test_the_input_equals_timms_evaluation_transform_to_the_last_bit(small, size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(small.config.pretrained_cfg))
    stored = torch.from_numpy(film_array(tmp_path / "film.png", 64).copy())[None]
    assert torch.equal(network_input(stored)[0], transform(Image.open(tmp_path / "film.png").convert("RGB")))
    assert torch.equal(network_input(stored.float() / 255), network_input(stored))  # as augmentation gives it


# One head, two of a distilled transformer, a convolution, and one with more layers behind it.
@pytest.mark.parametrize(
    "architecture", ["resnet10t", "deit_tiny_distilled_patch16_224", "test_convnext", "test_mambaout"]
)
def test_logits_are_scaled_and_then_that_of_class_one_is_shifted(architecture):
    model, films = build_model(architecture, 64).eval(), films_of(64)
    with torch.no_grad():
        before = model(films).logits
        scale_logits(model, 0.25, -1.5)
        torch.testing.assert_close(model(films).logits, before / 4 + torch.tensor([0, -1.5]))


def test_a_head_without_a_bias_can_be_scaled_but_not_shifted():
    model = build_model("resnet10t", 64)
    assert has_bias(model)
    model.timm_model.fc = torch.nn.Linear(512, 2, bias=False)
    before = model.timm_model.fc.weight.clone()
    assert not has_bias(model)
    scale_logits(model, 0.5)
    assert torch.equal(model.timm_model.fc.weight, before / 2)


@pytest.mark.parametrize("classes", [1000, 2])  # of ImageNet, and of a run that is fine-tuned further
def test_a_local_folder_gives_its_weights_to_all_but_the_head(tmp_path, classes):
    source = timm.create_model("resnet10t", num_classes=classes)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = build_model("resnet10t", 64, pretrained=str(tmp_path))
    assert torch.equal(model.timm_model.conv1[0].weight, source.conv1[0].weight)
    assert model.timm_model.fc.weight.shape == (2, 512)


def _write_weights(folder, kind: str) -> None:
    weights = timm.create_model("resnet18" if kind == "architecture" else "resnet10t").state_dict()
    if kind == "shapes":
        weights["conv1.0.weight"] = weights["conv1.0.weight"][:, :1].clone()
    if kind != "none":
        save_file(weights, folder / "model.safetensors")
    if kind == "damaged":
        (folder / "model.safetensors").write_bytes(b"\xff" * 50)


@pytest.mark.parametrize(
    "kind, problem",
    [
        ("architecture", "another architecture than resnet10t"),
        ("shapes", "other shapes than resnet10t"),
        ("damaged", "not a safetensors file"),
        ("none", "expects true, false, or a folder with model.safetensors"),
    ],
)
def test_a_folder_that_can_not_give_its_weights_is_an_error(tmp_path, kind, problem):
    _write_weights(tmp_path, kind)
    with pytest.raises(UsageError, match=f"--pretrained .*{problem}"):
        build_model("resnet10t", 64, pretrained=str(tmp_path))


@pytest.mark.parametrize("front", ["timm/", "hf-hub:timm/", "hf_hub:timm/"])
def test_timms_architectures_are_known_by_the_names_that_the_hub_gives_them(front):
    assert build_model(f"{front}resnet10t.c3_in1k", 32).config.architecture == "resnet10t"


@pytest.mark.parametrize(
    "architecture, size, pretrained, problem",
    [
        ("resnet1", 64, "false", "got 'resnet1'; did you mean .*resnet1"),
        ("microsoft/resnet-50", 64, "false", r"did you mean resnet50\?"),
        ("convnext-tiny", 64, "false", r"did you mean convnext_tiny\?"),
        ("resnet18.foo", 64, "false", "--model resnet18.foo"),
        ("test_vit", 40, "false", "does not work with --image_size 40"),
        ("coat_tiny", 64, "false", "--model coat_tiny: its layers share weights"),
        ("resnet10t.c3_in1k", 64, "true", "--pretrained true: .* can't be fetched"),
        # A pickle at an address, and weights that nobody published.
        ("vit_huge_patch14_gap_224", 224, "true", "the Hub has none as safetensors"),
        ("cnn_improved", 64, "true", "the Hub has none as safetensors.*--pretrained false"),
    ],
)
def test_a_network_that_can_not_be_had_fed_or_saved_is_an_error_before_training(
    architecture, size, pretrained, problem
):
    with pytest.raises(UsageError, match=problem):
        build_model(architecture, size, pretrained=pretrained)
