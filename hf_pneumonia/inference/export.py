"""Export a saved model as one ONNX file, checked against it, with a JSON file beside it on how to use it."""

import copy
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hf_pneumonia
from hf_pneumonia.data.files import written_whole
from hf_pneumonia.data.images import INTERPOLATION
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import MEAN, STD, network_input
from hf_pneumonia.modeling.saved import SavedModel

# The opset that torch's exporter is written in; to any other it converts what it wrote.
OPSET = 18
# Of logits (relative above 1) and probability, between onnxruntime and torch.
TOLERANCE = 1e-4

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_export(output: Path) -> None:
    """Check before a model is loaded that the packages are here and the file has the right name.

    Raises:
        UsageError: a package is missing, or `output` does not end in .onnx or is a folder.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError("export", f"an export needs {' and '.join(missing)}: pip install -e '.[onnx]'")
    if output.suffix != ".onnx" or output.is_dir():
        raise UsageError("export", f"--output {output}: expected the name of a file that ends in .onnx")


def export_onnx(saved: SavedModel, output: Path) -> float:
    """Write a model as ONNX, and `describe`'s answer as JSON under the same name with .json behind it.

    The file takes `pixel_values`, (b, 3, s, s) float32 as `network_input` makes them, for any b, and gives
    `logits`, (b, 2) float32 in the order of LABELS, and `probability`, (b,) float32, of pneumonia. What
    `load_model` does to feed and understand a network of other people is in the file. It gets its name only
    after onnxruntime has answered from it as torch does.

    Args:
        saved: left as it is.
        output: name of the file; an earlier one is replaced. Its folder is made.

    Returns:
        The largest difference between the file's answers and torch's, on the inputs that were tried.

    Raises:
        UsageError: the network can't be written as ONNX, or the written one answers otherwise. Then nothing
            is left, and earlier files stay.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".json")
    # The network may be another's, on a GPU or of half precision.
    network = copy.deepcopy(saved.model).cpu().float().eval()
    description = describe(saved)
    with written_whole(output) as aside:
        _write(saved.name, network, saved.image_size, description, aside)
        difference = _compare(saved.name, network, saved.image_size, aside)
        digest = hashlib.sha256(aside.read_bytes()).hexdigest()
        description = {"file": output.name, "sha256": digest, **description}
        beside.unlink(missing_ok=True)  # a file without a description is better than one with another's
    with written_whole(beside) as aside:
        aside.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return difference


def describe(saved: SavedModel) -> dict:
    """Return what a reader of the file must know to use it without this project, in plain values.

    From `threshold` on a probability is called PNEUMONIA; `operating_point` was measured at it on validation;
    `calibration` is in the weights already. None for what the model does not state.
    """
    size, stated = saved.image_size, saved.operating_point

    def kept(*keys: str) -> dict | None:
        return {key: stated[key] for key in keys if key in stated} or None

    return {
        "model": saved.name,
        "opset": OPSET,
        "input": {"name": "pixel_values", "shape": ["batch", 3, size, size], "type": "float32"},
        "outputs": {
            "logits": {"shape": ["batch", 2], "type": "float32", "order": list(LABELS)},
            "probability": {"shape": ["batch"], "type": "float32", "of": LABELS[1]},
        },
        "preprocessing": {
            "steps": [
                "bring the image upright and to 8 bits of gray, black being 0 (Pillow: "
                "ImageOps.exif_transpose, convert('L')); show a DICOM image through its window; stretch "
                "others of more than 8 bits from their darkest to their brightest value",
                f"resize all of it to {size} x {size} without keeping its proportions, antialiased "
                f"(Pillow: resize(({size}, {size}), Resampling.{INTERPOLATION.upper()}))",
                "divide by 255, subtract the mean, divide by the deviation, in float32",
                "repeat the one channel three times: (3, height, width)",
            ],
            "height": size,
            "width": size,
            "interpolation": INTERPOLATION,
            "antialias": True,
            "keep_proportions": False,
            "divide_by": 255,
            "mean": MEAN,
            "std": STD,
            "channels": 3,
        },
        "labels": list(LABELS),
        "threshold": stated.get("threshold", 0.5),
        "operating_point": kept("target_sensitivity", "sensitivity", "specificity"),
        "operating_points": stated.get("operating_points"),
        "calibration": kept("temperature", "intercept"),
        "notes": list(saved.notes),
        "versions": {
            "hf_pneumonia": hf_pneumonia.__version__,
            **{name: version(name) for name in ("torch", "transformers", "timm", *_NEEDED)},
        },
    }


class _Answers(nn.Module):
    """The model, hooks of `load_model` included, with plain tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(pixel_values).logits
        return logits, logits.softmax(1)[:, 1]


@torch.no_grad()
def _write(name: str, network: nn.Module, size: int, description: dict, file: Path) -> None:
    import onnx

    with _silence():
        try:
            torch.onnx.export(
                _Answers(network).eval(),
                (torch.zeros(2, 3, size, size),),
                file,
                input_names=["pixel_values"],
                output_names=["logits", "probability"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = (str(error.__cause__ or error) or "no reason given").splitlines()[0]
            raise UsageError("write", f"{name} can't be written as ONNX: {reason}") from error
    graph = onnx.load(file)
    _strip(graph)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in description.items()})
    onnx.save(graph, file)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep off the screen the pages that torch's exporter prints, warns and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip(message) -> None:
    """Remove the source file and line that the exporter notes for each node: paths tell of the machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


@torch.inference_mode()
def _compare(name: str, network: nn.Module, size: int, file: Path) -> float:
    """Return the largest difference of the file's answers from the network's; UsageError above TOLERANCE."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rng, largest = np.random.default_rng(0), 0.0
    for batch in (1, 2, 5):
        images = torch.from_numpy(rng.integers(0, 256, (batch, size, size), np.uint8))
        inputs = network_input(images).contiguous()
        expected = [one.numpy() for one in _Answers(network)(inputs)]
        found = session.run(["logits", "probability"], {"pixel_values": inputs.numpy()})
        for one, other in zip(found, expected, strict=True):
            # Written so that nan fails.
            difference = np.max(np.abs(one - other) / np.maximum(1, np.abs(other)))
            if not difference <= TOLERANCE:
                raise UsageError(
                    "compare",
                    f"{name}: for {batch} images the answers of onnxruntime differ from torch's by "
                    f"{difference:.2g}, expected at most {TOLERANCE:g}; nothing was written",
                )
            largest = max(largest, float(difference))
    return largest
