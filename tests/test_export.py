"""The ONNX file, fed by NumPy and Pillow from its JSON alone, against torch and the run's own table."""

import csv
import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference import export
from hf_pneumonia.inference.export import check_export, export_onnx
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.saved import SavedModel, load_model

ROOT = Path(__file__).parents[1]
FILMS = np.random.default_rng(1).integers(0, 256, (5, 64, 64), dtype=np.uint8)
POINT = {
    "threshold": 0.3,
    "target_sensitivity": 0.95,
    "sensitivity": 0.96,
    "specificity": 0.9,
    "temperature": 1.5,
}


def run_onnx(file: Path, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities, prepared as the JSON beside the file says and by nothing else."""
    said = json.loads(file.with_name(file.name + ".json").read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == said["sha256"]
    prepared = said["preprocessing"]
    resampling = {"bicubic": Image.Resampling.BICUBIC}[prepared["interpolation"]]
    inputs = []
    for image in images:
        gray = image.convert("L").resize((prepared["width"], prepared["height"]), resampling)
        pixels = np.asarray(gray, np.float32) / np.float32(prepared["divide_by"])
        pixels = (pixels - np.float32(prepared["mean"])) / np.float32(prepared["std"])
        inputs.append(np.repeat(pixels[None], prepared["channels"], 0))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == list(said["outputs"])
    return tuple(session.run(None, {said["input"]["name"]: np.stack(inputs)}))


def answers(model: nn.Module, films: np.ndarray = FILMS) -> np.ndarray:
    with torch.inference_mode():
        return model(network_input(torch.from_numpy(films))).logits.numpy()


def saved_model(architecture: str, size: int = 64) -> SavedModel:
    torch.manual_seed(0)
    model = build_model(architecture, size).eval()
    nn.init.normal_(model.timm_model.get_classifier().weight)
    return SavedModel("ours", model, size, POINT, [])


@pytest.fixture(scope="module")
def saved() -> SavedModel:
    return saved_model("cnn_improved")


@pytest.mark.parametrize(
    "architecture, size",
    [
        ("resnet18", 64),
        ("cnn_baseline", 64),
        ("cnn_improved", 70),
        ("convnext_atto", 64),
        ("mobilenetv3_small_100", 64),
        ("vit_tiny_patch16_224", 64),
    ],
)
def test_the_file_answers_as_torch_does_for_any_number_of_films(architecture, size, tmp_path):
    saved = saved_model(architecture, size)
    done = export_onnx(saved, tmp_path / "model.onnx")
    films = np.random.default_rng(1).integers(0, 256, (5, size, size), dtype=np.uint8)
    expected = answers(saved.model, films)
    assert 0 <= done.difference <= 1e-4
    for number in (1, 3, 5):
        logits, probability = run_onnx(done.file, [Image.fromarray(film) for film in films[:number]])
        np.testing.assert_allclose(logits, expected[:number], rtol=1e-4, atol=1e-4)
        softmax = np.exp(expected[:number, 1]) / np.exp(expected[:number]).sum(1)
        np.testing.assert_allclose(probability, softmax, atol=1e-4)
        assert logits.dtype == probability.dtype == np.float32


def test_a_finished_run_decides_as_its_own_table_on_the_whole_test_split(finished_run, tmp_path):
    done = export_onnx(load_model(str(finished_run)), tmp_path / "model.onnx")
    rows = list(csv.DictReader((finished_run / "predictions_test.csv").open()))
    _, probability = run_onnx(done.file, [Image.open(row["file"]) for row in rows])
    expected = np.array([float(row["probability"]) for row in rows])
    np.testing.assert_allclose(probability, expected, atol=1e-4)
    threshold = json.loads(done.description.read_text())["threshold"]
    assert threshold == json.loads((finished_run / "config.json").read_text())["pneumonia"]["threshold"]
    assert len(rows) == 30 and ((probability >= threshold) == (expected >= threshold)).all()
    assert 0 < (probability >= threshold).sum() < 30


@pytest.mark.parametrize("labels", [("NORMAL", "PNEUMONIA"), ("pneumonia", "Normal")])
def test_a_network_of_other_people_is_fed_and_understood_within_the_file(labels, tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64,
        patch_size=16, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    theirs = ViTForImageClassification(config).eval()
    nn.init.normal_(theirs.classifier.weight)
    theirs.save_pretrained(tmp_path / "vit")
    size = {"height": 64, "width": 64}
    processor = ViTImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.2, 0.1])
    processor.save_pretrained(tmp_path / "vit")
    done = export_onnx(load_model(str(tmp_path / "vit")), tmp_path / "model.onnx")

    images = [Image.fromarray(film) for film in FILMS]
    own = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    with torch.no_grad():
        expected = theirs(**own([one.convert("RGB") for one in images], return_tensors="pt")).logits.numpy()
    logits, _ = run_onnx(done.file, images)
    order = 1 if labels[0] == "NORMAL" else -1
    np.testing.assert_allclose(logits, expected[:, ::order], atol=1e-4)
    said = json.loads(done.description.read_text())
    assert (said["threshold"], said["operating_point"], said["calibration"]) == (0.5, None, None)
    assert "no operating point" in said["notes"][0]


def test_the_file_is_whole_of_the_stated_opset_and_takes_batches(saved, tmp_path):
    done = export_onnx(saved, tmp_path / "ünï cødé.onnx")
    graph = onnx.load(done.file)
    onnx.checker.check_model(graph, full_check=True)
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", export.OPSET)]
    ends = [*graph.graph.input, *graph.graph.output]
    shapes = {
        one.name: [side.dim_value or side.dim_param for side in one.type.tensor_type.shape.dim]
        for one in ends
    }
    assert shapes == {
        "pixel_values": ["batch", 3, 64, 64], "logits": ["batch", 2], "probability": ["batch"]
    }  # fmt: skip
    assert all(one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for one in ends)
    names = {"ünï cødé.onnx", "ünï cødé.onnx.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert not any(one.external_data for one in graph.graph.initializer)


def test_what_stands_beside_the_file_stands_in_it_too(saved, tmp_path):
    done = export_onnx(saved, tmp_path / "model.onnx")
    said = json.loads(done.description.read_text())
    inside = {one.key: json.loads(one.value) for one in onnx.load(done.file).metadata_props}
    assert (said.pop("file"), len(said.pop("sha256"))) == ("model.onnx", 64)
    assert inside == said
    assert said["labels"] == list(LABELS) and said["threshold"] == 0.3
    assert said["operating_point"] == {"target_sensitivity": 0.95, "sensitivity": 0.96, "specificity": 0.9}
    assert said["calibration"] == {"temperature": 1.5}
    assert said["versions"]["torch"] == torch.__version__.split("+")[0]


def _tells_of_the_machine(file: Path) -> bool:
    data = file.read_bytes()
    places = (ROOT, Path(torch.__file__).parents[1], Path.home(), file.parent)
    return any(str(place).encode() in data for place in places) or b".py" in data or b"stack_trace" in data


def test_no_path_of_this_machine_is_in_the_file(saved, tmp_path, monkeypatch):
    done = export_onnx(saved, tmp_path / "model.onnx")
    assert not _tells_of_the_machine(done.file)
    assert str(tmp_path) not in done.description.read_text()
    monkeypatch.setattr(export, "_strip", lambda message: None)
    assert _tells_of_the_machine(export_onnx(saved, tmp_path / "other.onnx").file)


def test_the_network_is_left_as_it_was(tmp_path):
    saved = saved_model("resnet10t")
    saved.model.train()
    before = {name: value.clone() for name, value in saved.model.state_dict().items()}
    export_onnx(saved, tmp_path / "model.onnx")
    after = saved.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(module.training for module in saved.model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in saved.model.parameters())


@pytest.mark.parametrize("form", [{"dtype": torch.bfloat16}, {"memory_format": torch.channels_last}])
def test_a_network_in_another_form_is_written_in_full_precision(form, tmp_path):
    saved = saved_model("resnet10t")
    saved.model.to(**form)
    done = export_onnx(saved, tmp_path / "model.onnx")
    logits, _ = run_onnx(done.file, [Image.fromarray(film) for film in FILMS])
    np.testing.assert_allclose(logits, answers(saved.model.float()), rtol=1e-4, atol=1e-4)


def test_a_file_that_answers_otherwise_is_not_kept_and_the_earlier_one_is(saved, tmp_path, monkeypatch):
    for name in ("model.onnx", "model.onnx.json"):
        (tmp_path / name).write_text("earlier")
    write = export._write

    def spoil(name, network, *rest):
        with torch.no_grad():
            network.timm_model.head.bias[1] += 0.01
            write(name, network, *rest)
            network.timm_model.head.bias[1] -= 0.01

    monkeypatch.setattr(export, "_write", spoil)
    with pytest.raises(
        UsageError, match=r"for 1 films .* differ from torch's by 0\.0\d+, .* nothing was written"
    ):
        export_onnx(saved, tmp_path / "model.onnx")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.onnx": "earlier", "model.onnx.json": "earlier"
    }  # fmt: skip
    monkeypatch.undo()
    done = export_onnx(saved, tmp_path / "model.onnx")
    assert (
        onnx.load(done.file).graph.node and json.loads(done.description.read_text())["file"] == "model.onnx"
    )


class _Odd(nn.Module):
    """What it does depends on what it sees."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, pixel_values):
        mean = pixel_values.mean((1, 2, 3))[:, None] * self.weight
        logits = torch.cat([mean, -mean if self.weight.isnan() or mean.sum() > 0 else mean], 1)
        return ImageClassifierOutput(logits=logits)


def test_a_network_that_can_not_be_written_is_one_line_and_leaves_nothing(
    tmp_path, saved, monkeypatch, capfd
):
    with pytest.raises(UsageError, match="odd can't be written as ONNX: ") as caught:
        export_onnx(SavedModel("odd", _Odd(1.0), 64, {}, []), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    assert logging.getLogger().isEnabledFor(logging.ERROR)
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="GB of weights"):
        export_onnx(saved, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_answers_that_are_no_numbers_are_refused(saved, tmp_path):
    saved = saved_model("cnn_baseline")
    saved.model.timm_model.head.bias.data[0] = torch.nan
    with pytest.raises(UsageError, match="differ from torch's by nan"):
        export_onnx(saved, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, problem",
    [
        ("model.pt", "ends in .onnx"),
        ("model", "ends in .onnx"),
        ("nowhere/model.onnx", "there is no folder .*nowhere; make it first"),
        ("folder.onnx", "it is a folder"),
        ("locked/model.onnx", "no permission to write in .*locked"),
    ],
)
def test_a_name_that_can_not_be_written_is_told_of(name, problem, tmp_path, monkeypatch):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "locked").mkdir()
    # Whoever runs the tests may write everywhere.
    monkeypatch.setattr(export, "access", lambda folder, _: folder.name != "locked")
    with pytest.raises(UsageError, match=problem):
        check_export(tmp_path / name)


@pytest.mark.parametrize("missing", [["onnx"], ["onnxscript", "onnxruntime"]])
def test_missing_packages_are_told_of_with_the_way_to_get_them(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(UsageError, match=rf"needs {' and '.join(missing)}: pip install -e '.\[onnx\]'"):
        check_export(tmp_path / "model.onnx")


def _command(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hf_pneumonia", "export", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_the_command_says_what_it_wrote_and_no_more(finished_run, tmp_path):
    file = tmp_path / "model.onnx"
    done = _command("--model", finished_run, "--output", file)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("onnxruntime answers as torch does") and "opset 18" in first
    assert last == f"export: {file}, {file}.json" and file.is_file()


def test_the_commands_mistakes_are_one_line_and_exit_code_2(finished_run, tmp_path):
    for flags, problem in (
        (
            ("--model", "/no/such/run", "--output", tmp_path / "model.pt"),
            "expected a name that ends in .onnx",
        ),
        (("--model", tmp_path, "--output", tmp_path / "model.onnx"), "config.json is missing"),
        (("--model", finished_run), "--output"),
    ):
        done = _command(*flags)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (
            2,
            "",
            1,
        ) and problem in done.stderr
    assert not list(tmp_path.iterdir())
