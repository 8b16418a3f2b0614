"""ONNX export of a saved model, verified against PyTorch, with a JSON description."""

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
from hf_pneumonia.data.files import atomic_write
from hf_pneumonia.data.images import INTERPOLATION
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import MEAN, STD, network_input
from hf_pneumonia.modeling.saved import SavedModel

# Native opset of torch's exporter; for any other it converts its output.
OPSET = 18
# Largest difference between onnxruntime and torch, of probabilities and logits (relative above 1).
TOLERANCE = 1e-4

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_export(output: Path) -> None:
    """Check the packages and the output path of an export, before the model is loaded.

    Raises:
        UsageError: a package is missing, or `output` is a folder or does not end in .onnx.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            "onnx-packages-missing",
            f"export: expected the packages {', '.join(_NEEDED)}, got no {', '.join(missing)}. "
            "Run pip install -e '.[onnx]'",
        )
    if output.suffix != ".onnx" or output.is_dir():
        raise UsageError(
            "not-an-onnx-path", f"--output: expected a file name that ends in .onnx, got {str(output)!r}"
        )


def export_onnx(saved: SavedModel, output: Path) -> float:
    """Export a model to ONNX, and its description from `describe` to OUTPUT.json.

    The input is `pixel_values`, (b, 3, s, s) float32 from `network_input`, for any b. The outputs are
    `logits`, (b, 2) float32 in the order of LABELS, and `probability`, (b,) float32, of pneumonia. The
    adapters that `load_model` adds to third-party models are part of the graph. The files are put in place
    only if onnxruntime reproduces the outputs of torch.

    Args:
        saved: from `load_model`: in float32, on the CPU.
        output: path of the .onnx file. An earlier file is replaced; the folder is created.

    Returns:
        The largest difference between onnxruntime and torch on random inputs.

    Raises:
        UsageError: the network can't be exported, or onnxruntime and torch differ by more than TOLERANCE.
            Earlier files are kept.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".json")
    description = describe(saved)
    with atomic_write(output) as aside:
        _write(saved.name, saved.model, saved.image_size, description, aside)
        difference = _compare(saved.name, saved.model, saved.image_size, aside)
        digest = hashlib.sha256(aside.read_bytes()).hexdigest()
        description = {"file": output.name, "sha256": digest, **description}
        beside.unlink(missing_ok=True)  # no description is better than one of an earlier file
    with atomic_write(beside) as aside:
        aside.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return difference


def describe(saved: SavedModel) -> dict:
    """Return a description of input, preprocessing and outputs, to use the file without this package.

    A probability of at least `threshold` means PNEUMONIA. `operating_point` was measured at this threshold
    on validation. `calibration` is already part of the weights. Values that the model lacks are None.
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
                "apply the EXIF orientation and convert to 8-bit grayscale with 0 as black (Pillow: "
                "ImageOps.exif_transpose, convert('L')); apply the window of a DICOM image; stretch other "
                "images of more than 8 bits from their darkest to their brightest value",
                f"resize the whole image to {size} x {size} without keeping its proportions, antialiased "
                f"(Pillow: resize(({size}, {size}), Resampling.{INTERPOLATION.upper()}))",
                "divide by 255, subtract the mean, divide by the standard deviation, in float32",
                "repeat the channel three times: (3, height, width)",
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


class _WithProbability(nn.Module):
    """The model, including the hooks of `load_model`, with logits and probability as plain tensors."""

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
                _WithProbability(network).eval(),
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
            raise UsageError(
                "onnx-export-failed",
                f"{name}: this network can't be exported to ONNX: {reason}. Use it through PyTorch",
            ) from error
    graph = onnx.load(file)
    _strip(graph)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in description.items()})
    onnx.save(graph, file)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the prints, warnings and log lines of torch's exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip(message) -> None:
    """Remove the source file and line of each node: paths reveal the machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


@torch.inference_mode()
def _compare(name: str, network: nn.Module, size: int, file: Path) -> float:
    """Return the largest difference between the ONNX file and the network.

    Raises:
        UsageError: it exceeds TOLERANCE.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rng, largest = np.random.default_rng(0), 0.0
    for batch in (1, 2, 5):
        images = torch.from_numpy(rng.integers(0, 256, (batch, size, size), np.uint8))
        inputs = network_input(images).contiguous()
        expected = [output.numpy() for output in _WithProbability(network)(inputs)]
        found = session.run(["logits", "probability"], {"pixel_values": inputs.numpy()})
        for one, other in zip(found, expected, strict=True):
            difference = np.max(np.abs(one - other) / np.maximum(1, np.abs(other)))
            if not difference <= TOLERANCE:  # also true for NaN
                raise UsageError(
                    "onnx-mismatch",
                    f"{name}: expected onnxruntime within {TOLERANCE:g} of torch, got a difference of "
                    f"{difference:.2g} for a batch of {batch}; nothing was written. Use it through PyTorch",
                )
            largest = max(largest, float(difference))
    return largest
