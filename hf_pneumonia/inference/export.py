"""A saved model -> one ONNX file that was checked against it, and beside it in plain values how to use it."""

import copy
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from os import W_OK, access
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hf_pneumonia
from hf_pneumonia.data.files import written_whole
from hf_pneumonia.data.film import INTERPOLATION
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import MEAN, STD, network_input
from hf_pneumonia.modeling.saved import SavedModel

# The opset that torch's exporter is written in; to any other it converts what it wrote.
OPSET = 18
# Of logits (relative above 1) and probability, between onnxruntime and torch.
TOLERANCE = 1e-4

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 2, 5)
_MOST_BYTES = 2 * 10**9  # a protobuf message ends at 2 GiB


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        file: the network.
        description: the JSON file beside it.
        difference: the largest between the file's answers and torch's, on the inputs that were tried.
    """

    file: Path
    description: Path
    difference: float


def check_export(output: Path) -> None:
    """Find out before a model is loaded whether one could be written. Writes nothing.

    Raises:
        UsageError: a package is missing, or `output` is no name of a file that can be written.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(f"an export needs {' and '.join(missing)}: pip install -e '.[onnx]'")
    problem = None
    if output.suffix != ".onnx":
        problem = "expected a name that ends in .onnx"
    elif output.is_dir():
        problem = "it is a folder; name a file in it"
    elif not output.parent.is_dir():
        problem = f"there is no folder {output.parent}; make it first"
    elif not access(output.parent, W_OK):
        problem = f"no permission to write in {output.parent}; choose another folder"
    if problem:
        raise UsageError(f"--output {output}: {problem}")


def export_onnx(saved: SavedModel, output: Path) -> Export:
    """Write a model as ONNX, and `describe`'s answer as JSON under the same name with .json behind it.

    The file takes `pixel_values`, (b, 3, s, s) float32 as `network_input` makes them, for any b, and gives
    `logits`, (b, 2) float32 in the order of LABELS, and `probability`, (b,) float32, of pneumonia. What
    `load_model` does to feed and understand a network of other people is in the file. It gets its name only
    after onnxruntime has answered from it as torch does.

    Args:
        saved: left as it is.
        output: name of the file, ending in .onnx; an earlier one is replaced.

    Raises:
        UsageError: as `check_export`; the network can't be written as ONNX or in one file, or the written one
            answers otherwise. Then nothing is left, and earlier files stay.
    """
    check_export(output)
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
    return Export(output, beside, difference)


def describe(saved: SavedModel) -> dict:
    """What a reader of the file must know to use it without this project, in plain values.

    Returns:
        `preprocessing`, from a film to the input; `labels`; `threshold`, from which a probability is called
        PNEUMONIA; `operating_point`, what was measured at it on validation, and `operating_points`, others by
        name; `calibration`, which is in the weights already; `notes`; `versions`. None for what the model
        does not state.
    """
    size, stated = saved.image_size, saved.operating_point

    def kept(*keys: str) -> dict | None:
        # Not all that it states: the data set's name and the split are nobody's who only uses the file.
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
                "bring the film upright and to 8 bits of gray, black being 0 (Pillow: "
                "ImageOps.exif_transpose, convert('L')); show a DICOM film through its window; stretch "
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

    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    if weights > _MOST_BYTES:
        raise UsageError(
            f"{name}: {weights / 1e9:.1f} GB of weights, and one ONNX file holds "
            f"{_MOST_BYTES / 1e9:.0f}; choose a smaller network"
        )
    # The exporter through torch.export: the older one, through TorchScript, gave the same answers, but is
    # deprecated and turns what it sees of shapes into constants.
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
            raise UsageError(f"{name} can't be written as ONNX: {reason}") from error
    graph = onnx.load(file)
    _strip(graph)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in description.items()})
    onnx.checker.check_model(graph, full_check=True)
    found = {(one.domain, one.version) for one in graph.opset_import}
    if found != {("", OPSET)}:
        raise UsageError(f"{name}: expected opset {OPSET} and no other, torch's exporter wrote {found}")
    onnx.save(graph, file)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep off the screen what torch's exporter prints, warns and logs: pages of code, of a network that it
    can't write. The reason is in the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip(message) -> None:
    """Take away what a protobuf message says beside its content: for each node the exporter notes which line
    of which file it came of, and the way to that file tells of the machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


@torch.inference_mode()
def _compare(name: str, network: nn.Module, size: int, file: Path) -> float:
    """Largest difference between the file's answers and the network's, on noise of a fixed seed.

    Raises:
        UsageError: it is above TOLERANCE, or an answer is no number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rng, largest = np.random.default_rng(0), 0.0
    for batch in _BATCHES:
        films = torch.from_numpy(rng.integers(0, 256, (batch, size, size), np.uint8))
        inputs = network_input(films).contiguous()
        expected = [one.numpy() for one in _Answers(network)(inputs)]
        found = session.run(["logits", "probability"], {"pixel_values": inputs.numpy()})
        for one, other in zip(found, expected, strict=True):
            if one.shape != other.shape or one.dtype != np.float32:
                raise UsageError(f"{name}: for {batch} films ONNX gives {one.dtype} {one.shape}")
            # Written so that nan fails.
            difference = np.max(np.abs(one - other) / np.maximum(1, np.abs(other)))
            if not difference <= TOLERANCE:
                raise UsageError(
                    f"{name}: for {batch} films the answers of onnxruntime differ from torch's by "
                    f"{difference:.2g}, and at most {TOLERANCE:g} was expected; nothing was written"
                )
            largest = max(largest, float(difference))
    return largest
