"""Loading of saved models: preprocessing, labels, damage, and files or code that must not be loaded."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.saved import load_model

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)


def _logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(network_input(torch.from_numpy(IMAGES))).logits.numpy()


def _refusal(folder) -> str:
    """Return the message with which a model is refused."""
    with pytest.raises(UsageError) as error:
        load_model(str(folder))
    assert error.value.code == "invalid-model"
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def _change(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def _change_preprocessing(folder, **values) -> None:
    before = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    _change(folder, pretrained_cfg={**before, **values})


def test_a_saved_model_is_loaded_unchanged(timm_folder, tmp_path):
    shutil.copytree(timm_folder, tmp_path / "secret" / "run")
    saved = load_model(f"{tmp_path / 'secret' / 'run'}/")
    assert (saved.name, saved.image_size, saved.notes) == ("run", 64, [])
    assert saved.operating_point == {"threshold": 0.3}
    torch.manual_seed(0)
    np.testing.assert_array_equal(_logits(saved.model), _logits(build_model("resnet10t", 64)))


@pytest.mark.parametrize("kind", ["timm_folder", "vit_folder"])
def test_inputs_are_converted_to_the_preprocessing_of_the_model(kind, request):
    folder = request.getfixturevalue(kind)
    if kind == "timm_folder":
        _change_preprocessing(folder, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    saved = load_model(str(folder))
    images = [Image.fromarray(image).convert("RGB") for image in IMAGES]
    plain = type(saved.model).from_pretrained(folder).eval()
    with torch.no_grad():
        expected = plain(**AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")).logits
    np.testing.assert_allclose(_logits(saved.model), expected.numpy(), atol=1e-5)
    assert saved.image_size == 64
    if kind == "vit_folder":
        assert saved.operating_point == {}
        assert "operating point" in saved.notes[0] and "squashed to 64 x 64" in saved.notes[1]


def test_a_report_of_other_weights_is_noted(timm_folder):
    weights = hashlib.sha256((timm_folder / "model.safetensors").read_bytes()).hexdigest()
    for stated, noted in ((weights, False), ("0" * 64, True), (None, False)):
        (timm_folder / "report.json").write_text(json.dumps({"weights_sha256": stated}))
        assert any("of other weights" in note for note in load_model(str(timm_folder)).notes) == noted
    (timm_folder / "report.json").write_text("{")
    assert load_model(str(timm_folder)).notes == []


def test_labels_in_another_order_and_spelling_are_recognised(vit_folder):
    expected = _logits(load_model(str(vit_folder)).model)
    _change(vit_folder, id2label={0: "pneumonia", 1: "Normal"}, label2id={"pneumonia": 0, "Normal": 1})
    np.testing.assert_array_equal(_logits(load_model(str(vit_folder)).model), expected[:, ::-1])


@pytest.mark.parametrize(
    "labels", [("CAT", "DOG"), ("NORMAL", "healthy"), ("NORMAL", "PNEUMONIA", "COVID19")]
)
def test_other_labels_are_refused(vit_folder, labels):
    config = ViTConfig.from_pretrained(vit_folder, num_labels=len(labels), id2label=dict(enumerate(labels)))
    ViTForImageClassification(config).save_pretrained(vit_folder)
    assert f"got {', '.join(labels)}" in _refusal(vit_folder)


def test_a_network_without_its_head_is_refused(vit_folder):
    model = ViTForImageClassification.from_pretrained(vit_folder)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "classifier" not in name}
    model.save_pretrained(vit_folder, state_dict=kept)
    assert "2 tensors are missing, such as classifier.bias" in _refusal(vit_folder)


def test_damaged_weights_and_configs_are_refused(timm_folder):
    weights, config = timm_folder / "model.safetensors", timm_folder / "config.json"
    data = weights.read_bytes()
    for damaged in (data[:5000], data.replace(b"[2,512]", b"[512,2]")):
        weights.write_bytes(damaged)
        _refusal(timm_folder)
    weights.write_bytes(data)
    for text in ("[]", "{", '{"model_args": 5}', '{"num_classes": 1' + 18 * "0" + "}"):
        config.write_text(text)
        _refusal(timm_folder)


def test_an_input_of_absurd_size_or_scale_is_refused(timm_folder):
    sizes, scales = ([3, 10**6, 10**6], [3, 0, 0], [3, "96", "96"]), ([0.5, 0.5], [float("nan")] * 3)
    for change in (*({"input_size": size} for size in sizes), *({"std": scale} for scale in scales)):
        before = (timm_folder / "config.json").read_text()
        _change_preprocessing(timm_folder, **change)
        assert "expected" in _refusal(timm_folder), change
        (timm_folder / "config.json").write_text(before)


CURVE = {"threshold": [0.1, 0.2], "sensitivity": [0.9, 0.8], "specificity": [0.5, 0.6]}


def test_an_invalid_operating_point_is_refused(timm_folder):
    valid = {"threshold": 0.3, "temperature": 1.2, "uncertain": {"low": 0.2, "high": 0.4}, "trade_off": CURVE}
    _change(timm_folder, pneumonia=valid)
    assert load_model(str(timm_folder)).operating_point == valid
    for change in (
        {"threshold": "high"},
        {"threshold": float("nan")},
        {"temperature": 0},
        {"uncertain": {"low": 0.5, "high": 0.2}},
        {"trade_off": CURVE | {"threshold": [0.2, 0.1]}},
        {"trade_off": CURVE | {"sensitivity": [0.9]}},
        {"trade_off": CURVE | {"specificity": [0.5, 7]}},
    ):
        _change(timm_folder, pneumonia=valid | change)
        assert "config.json is damaged" in _refusal(timm_folder), change


def test_sharded_weights_are_loaded(timm_folder):
    expected = load_model(str(timm_folder)).model
    expected.save_pretrained(timm_folder / "shards", max_shard_size="4MB")
    assert len(list((timm_folder / "shards").glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(_logits(load_model(str(timm_folder / "shards")).model), _logits(expected))


def test_an_index_of_shards_with_another_file_is_refused(timm_folder):
    for file in ("evil.bin", "../model.safetensors", 5):
        index = {"metadata": {}, "weight_map": {"fc.weight": file}}
        (timm_folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "model.safetensors.index.json" in _refusal(timm_folder)


def test_a_config_that_refers_to_other_weights_or_code_is_refused(timm_folder):
    before = (timm_folder / "config.json").read_text()
    for change in (
        {"model_args": {"checkpoint_path": "other.pth"}},
        {"model_args": {"pretrained_cfg": {"file": "other.pth"}}},
        {"architecture": "hf-hub:somebody/else"},
        {"attn_implementation": "evil/kernel"},
        {"text_config": {"_attn_implementation": "evil/kernel"}},
        {"transformers_weights": "adapter_model.bin"},
    ):
        _change(timm_folder, **change)
        assert "refers to other files or code" in _refusal(timm_folder), change
        (timm_folder / "config.json").write_text(before)
    (timm_folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in _refusal(timm_folder)


def test_code_of_a_model_is_not_run(timm_folder, tmp_path):
    (timm_folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    _change(timm_folder, model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    _refusal(timm_folder)
    assert not (tmp_path / "ran").exists()
