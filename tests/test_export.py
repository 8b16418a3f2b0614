"""ONNX export against torch, with preprocessing by the JSON description only; see also test_parity.py."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image
from scipy.special import softmax
from torch import nn
from transformers import AutoImageProcessor, ViTForImageClassification

from hf_pneumonia.__main__ import main
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.export import OPSET, export_onnx
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.saved import SavedModel, load_model

REACHED = {"target_sensitivity": 0.95, "sensitivity": 0.96, "specificity": 0.9}
POINT = {"threshold": 0.3, "temperature": 1.5, **REACHED}


def run_onnx(file: Path, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and probabilities, with preprocessing by the JSON description only."""
    description = json.loads(file.with_name(file.name + ".json").read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == description["sha256"]
    steps = description["preprocessing"]
    resampling = {"bicubic": Image.Resampling.BICUBIC}[steps["interpolation"]]
    inputs = []
    for image in images:
        gray = image.convert("L").resize((steps["width"], steps["height"]), resampling)
        pixels = np.asarray(gray, np.float32) / np.float32(steps["divide_by"])
        pixels = (pixels - np.float32(steps["mean"])) / np.float32(steps["std"])
        inputs.append(np.repeat(pixels[None], steps["channels"], 0))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == list(description["outputs"])
    return tuple(session.run(None, {description["input"]["name"]: np.stack(inputs)}))


def images_of(size: int) -> list[Image.Image]:
    images = np.random.default_rng(1).integers(0, 256, (5, size, size), np.uint8)
    return [Image.fromarray(image) for image in images]


def saved_model(architecture: str, size: int = 32) -> SavedModel:
    torch.manual_seed(0)
    model = build_model(architecture, size).eval()
    nn.init.normal_(model.timm_model.get_classifier().weight)
    return SavedModel("ours", model, size, POINT, [])


@pytest.fixture(scope="module")
def saved() -> SavedModel:
    return saved_model("cnn_improved")


@pytest.fixture(scope="module")
def file(saved, tmp_path_factory) -> Path:
    """An exported network, with a file name outside ASCII."""
    path = tmp_path_factory.mktemp("export") / "ünï cødé.onnx"
    assert 0 <= export_onnx(saved, path) <= 1e-4
    return path


def assert_matches_torch(file: Path, model: nn.Module, size: int = 32) -> None:
    images = images_of(size)
    with torch.inference_mode():
        expected = model(network_input(torch.from_numpy(np.stack(images)))).logits.numpy()
    for number in (1, 3, 5):
        logits, probability = run_onnx(file, images[:number])
        np.testing.assert_allclose(logits, expected[:number], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(probability, softmax(expected[:number], 1)[:, 1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, size",
    [("cnn_baseline", 38), ("test_convnext", 32), ("test_efficientnet", 32), ("test_vit", 32)],
)
def test_other_families_match_torch(architecture, size, tmp_path):
    saved = saved_model(architecture, size)
    export_onnx(saved, tmp_path / "model.onnx")
    assert_matches_torch(tmp_path / "model.onnx", saved.model, size)


def test_the_adapters_of_a_third_party_model_are_part_of_the_file(vit_folder, tmp_path):
    model = ViTForImageClassification.from_pretrained(vit_folder)
    nn.init.normal_(model.classifier.weight)
    model.config.id2label = {0: "pneumonia", 1: "Normal"}
    model.config.label2id = {"pneumonia": 0, "Normal": 1}
    model.save_pretrained(vit_folder)
    export_onnx(load_model(str(vit_folder)), tmp_path / "model.onnx")
    images = images_of(64)
    own = AutoImageProcessor.from_pretrained(vit_folder)
    with torch.no_grad():
        expected = model.eval()(**own([one.convert("RGB") for one in images], return_tensors="pt")).logits
    logits, _ = run_onnx(tmp_path / "model.onnx", images)
    np.testing.assert_allclose(logits, expected.numpy()[:, ::-1], atol=1e-4)
    description = json.loads((tmp_path / "model.onnx.json").read_text())
    stated = [description[key] for key in ("threshold", "operating_point", "calibration")]
    assert stated == [0.5, None, None] and "operating point" in description["notes"][0]


def test_the_file_is_valid_and_matches_torch_for_any_batch_size(saved, file):
    assert_matches_torch(file, saved.model)
    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", OPSET)]
    assert {path.name for path in file.parent.iterdir()} == {"ünï cødé.onnx", "ünï cødé.onnx.json"}


def test_the_metadata_equals_the_json_and_contains_no_local_path(file):
    description = json.loads(Path(f"{file}.json").read_text())
    assert description["labels"] == list(LABELS) and description["threshold"] == 0.3
    assert (description["operating_point"], description["calibration"]) == (REACHED, {"temperature": 1.5})
    inside = {one.key: json.loads(one.value) for one in onnx.load(file).metadata_props}
    assert inside | {"file": file.name, "sha256": description["sha256"]} == description
    data = file.read_bytes() + Path(f"{file}.json").read_bytes()
    places = (ROOT, Path(torch.__file__).parents[1], Path.home(), file.parent)
    assert not any(text in data for text in (b".py", b"stack_trace", *(str(one).encode() for one in places)))


@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_a_file_that_does_not_match_is_discarded_and_the_earlier_one_kept(
    saved, file, wrong, tmp_path, monkeypatch
):
    for name in ("model.onnx", "model.onnx.json"):
        (tmp_path / name).write_text("earlier")
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(torch.onnx, "export", lambda model, inputs, aside, **_: shutil.copy(file, aside))
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *args: [one + wrong for one in run(*args)]
    )
    with pytest.raises(UsageError, match=r"difference of (0\.0|nan)") as error:
        export_onnx(saved, tmp_path / "model.onnx")
    assert error.value.code == "onnx-mismatch"
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {"model.onnx": "earlier", "model.onnx.json": "earlier"}


def test_mistakes_are_reported_before_anything_is_written(tmp_path):
    for output, problem in (("model.pt", r"model\.pt"), ("model.onnx", "/no/such/run")):
        with pytest.raises(UsageError, match=problem):
            main(["export", "--model", "/no/such/run", "--output", str(tmp_path / output)])
    assert not list(tmp_path.iterdir())
