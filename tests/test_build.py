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


@pytest.fixture(scope="module")
def small():
    return build_model("resnet10t.c3_in1k", 64, drop_rate=0.5)


def test_the_saved_folder_holds_timms_own_keys_and_no_pickle(small, tmp_path):
    small.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert (
        load_file(tmp_path / "model.safetensors").keys() == timm.create_model("resnet10t").state_dict().keys()
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == {"drop_rate": 0.5} and config["label_names"] == ["NORMAL", "PNEUMONIA"]


def test_without_dropout_the_saved_arguments_are_empty_and_not_null(tmp_path):
    build_model("resnet10t.c3_in1k", 64).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == {}
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("architecture", ["resnet10t", "test_vit", "test_convnext"])
def test_timm_loads_the_saved_folder_and_answers_the_same_at_another_input_size(architecture, tmp_path):
    model = build_model(architecture, 96).eval()
    model.save_pretrained(tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    films = network_input(torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(loaded(films), model(films).logits)


@pytest.mark.parametrize("size", [(130, 95), (64, 64), (40, 200)])
def test_the_input_equals_timms_evaluation_transform_to_the_last_bit(small, size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(small.config.pretrained_cfg))
    ours = network_input(torch.from_numpy(film_array(tmp_path / "film.png", 64).copy())[None])
    assert torch.equal(ours[0], transform(Image.open(tmp_path / "film.png").convert("RGB")))


def test_augmented_films_are_scaled_like_stored_ones():
    films = torch.randint(0, 256, (2, 8, 8), dtype=torch.uint8)
    assert torch.equal(network_input(films), network_input(films.float() / 255))


def test_scaling_the_logits_scales_them_and_nothing_else(small):
    films = network_input(torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8))
    small.eval()
    with torch.no_grad():
        before = small(films).logits
        scale_logits(small, 1 / 3)
        torch.testing.assert_close(small(films).logits, before / 3)
        scale_logits(small, 3)


def test_a_local_folder_gives_its_weights_to_all_but_the_head(tmp_path):
    source = timm.create_model("resnet10t", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = build_model("resnet10t", 64, pretrained=str(tmp_path))
    assert torch.equal(model.timm_model.conv1[0].weight, source.conv1[0].weight)
    assert model.timm_model.fc.weight.shape == (2, 512)


def test_a_run_folder_can_be_fine_tuned_further(small, tmp_path):
    small.save_pretrained(tmp_path)
    model = build_model("resnet10t", 64, pretrained=str(tmp_path))
    assert torch.equal(model.timm_model.conv1[0].weight, small.timm_model.conv1[0].weight)


@pytest.mark.parametrize("other", ["resnet18", "resnet14t"])
def test_weights_of_another_architecture_are_refused(tmp_path, other):
    save_file(timm.create_model(other).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="another architecture than resnet10t"):
        build_model("resnet10t", 64, pretrained=str(tmp_path))


def test_weights_of_other_shapes_are_refused(tmp_path):
    weights = timm.create_model("resnet10t").state_dict()
    weights["conv1.0.weight"] = weights["conv1.0.weight"][:, :1].clone()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="of other shapes"):
        build_model("resnet10t", 64, pretrained=str(tmp_path))


@pytest.mark.parametrize(
    "architecture", ["deit_tiny_distilled_patch16_224", "test_convnext", "test_mambaout"]
)
def test_heads_of_other_kinds_are_scaled_too(architecture):
    model = build_model(architecture, 64).eval()
    films = network_input(torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        before = model(films).logits
        scale_logits(model, 0.25)
        torch.testing.assert_close(model(films).logits, before / 4)


@pytest.mark.parametrize("architecture", ["resnet10t", "deit_tiny_distilled_patch16_224", "test_mambaout"])
def test_an_offset_is_added_to_the_answer_of_class_one_after_the_scaling(architecture):
    model = build_model(architecture, 64).eval()
    films = network_input(torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        before = model(films).logits
        scale_logits(model, 0.25, -1.5)
        torch.testing.assert_close(model(films).logits, before / 4 + torch.tensor([0, -1.5]))


def test_a_head_without_a_bias_can_be_scaled_but_not_shifted():
    model = build_model("resnet10t", 64).eval()
    model.timm_model.fc = torch.nn.Linear(512, 2, bias=False)
    before = model.timm_model.fc.weight.clone()
    assert not has_bias(model) and has_bias(build_model("resnet10t", 64))
    scale_logits(model, 0.5)
    assert torch.equal(model.timm_model.fc.weight, before / 2)


def test_a_network_that_does_not_take_such_films_is_an_error_before_training():
    with pytest.raises(UsageError, match="does not work with --image_size 40"):
        build_model("test_vit", 40)


def test_a_network_that_cannot_be_saved_is_an_error_before_training():
    with pytest.raises(UsageError, match="--model coat_tiny: its layers share weights"):
        build_model("coat_tiny", 64)


def test_an_unknown_tag_is_an_error():
    with pytest.raises(UsageError, match="--model resnet18.foo"):
        build_model("resnet18.foo", 64)


def test_a_damaged_weights_file_is_an_error(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(UsageError, match="not a safetensors file"):
        build_model("resnet10t", 64, pretrained=str(tmp_path))


def test_a_folder_without_weights_is_an_error_that_names_the_flag(tmp_path):
    with pytest.raises(UsageError, match="--pretrained expects true, false, or a folder"):
        build_model("resnet10t", 64, pretrained=str(tmp_path))


def test_weights_that_cannot_be_fetched_are_an_error_that_names_the_flag():
    with pytest.raises(UsageError, match="--pretrained true: .* can't be fetched.*--pretrained false"):
        build_model("resnet10t.c3_in1k", 64, pretrained="true")


def test_an_unknown_architecture_is_an_error_that_guesses_the_intent():
    with pytest.raises(UsageError, match="got 'resnet1'; did you mean .*resnet1"):
        build_model("resnet1", 64)


def test_weights_that_are_published_as_a_pickle_alone_are_not_fetched():
    with pytest.raises(UsageError, match="are a pickle at an address, never loaded"):
        build_model("vit_huge_patch14_gap_224", 224, pretrained="true")
