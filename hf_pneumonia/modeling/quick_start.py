"""A saved network as this project publishes it -> the same, without transformers, a second of imports.

For a process that only answers, and whose first answer somebody waits for. Whatever is not plainly such a
network is left to `modeling.saved`, which says what is wrong with it.
"""

from pathlib import Path
from types import SimpleNamespace

import timm
import torch
from safetensors.torch import load_file

from hf_pneumonia.data.film import INTERPOLATION
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import MEAN, STD
from hf_pneumonia.modeling.demands import check_weights, read_config, without_memory
from hf_pneumonia.modeling.fetch import model_folder
from hf_pneumonia.modeling.saved import (
    OTHER_REPORT,
    SIDES,
    SavedModel,
    has_other_report,
    load_model,
    operating_point,
    short_name,
    try_film,
)

# What a model's folder would have to hold for transformers to read more than config.json and the weights.
_MORE_FILES = ("model.safetensors.index.json", "preprocessor_config.json", "processor_config.json")

_ARGUMENTS = {"drop_rate", "img_size"}  # that `build_model` gives a network


class TimmNetwork(torch.nn.Module):
    """Answers as transformers' TimmWrapperForImageClassification does, as far as `inference` asks it.

    Args:
        network: timm's, in evaluation mode.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.timm_model = network

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.timm_model(pixel_values))


def load_to_answer(name: str, revision: str | None = None) -> SavedModel:
    """As `load_model`, for who asks the network and saves nothing: where it can be had without transformers,
    `model` is a `TimmNetwork`, which gives the same logits to the last bit.

    Raises:
        UsageError: as `load_model`.
    """
    folder = model_folder(name, revision)
    found = _plain_network(folder)
    if found is None:
        return load_model(name, revision)
    network, stated, size = found
    model = TimmNetwork(network).eval()
    try:
        try_film(model, name, size)
        point = operating_point(stated, name)
    except UsageError:
        point = {}
    if not point:
        return load_model(name, revision)
    notes = [OTHER_REPORT] if has_other_report(folder) else []
    return SavedModel(short_name(name), model, size, point, notes, None, folder)


def _plain_network(folder: Path) -> tuple[torch.nn.Module, object, int] | None:
    """timm's network, what its config.json states under `pneumonia`, and the side of its input; None where
    anything is not just as `build_model` and `save_model` leave it."""
    if any((folder / name).exists() for name in _MORE_FILES):
        return None
    try:
        config, shapes = read_config(folder), check_weights(folder)
        fed, arguments = config["pretrained_cfg"], config["model_args"]
        side = fed["input_size"][2]
        as_built = (
            config["model_type"] == "timm_wrapper"
            and config["label_names"] == list(LABELS)
            and arguments.keys() <= _ARGUMENTS
            and (fed["mean"], fed["std"]) == ([MEAN] * 3, [STD] * 3)
            and (fed["crop_mode"], fed["crop_pct"], fed["interpolation"]) == ("squash", 1.0, INTERPOLATION)
            and fed["input_size"] == [3, side, side]
            and side in SIDES
        )
        if not as_built:
            return None
        with without_memory(shapes):
            network = timm.create_model(config["architecture"], num_classes=len(LABELS), **arguments)
        network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    # An architecture may raise nearly anything; `load_model` meets it too, and says it better.
    except Exception:
        return None
    tensors = (*network.parameters(), *network.buffers())
    # Some tensors are in no file, and made anew by each network; and transformers is asked for float32.
    if any(one.is_meta or one.dtype not in (torch.float32, torch.int64) for one in tensors):
        return None
    return network, config.get("pneumonia"), side
