"""Two-class networks from timm architectures, in a format that transformers and timm both load."""

import copy
import difflib
import logging
import re
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

import hf_pneumonia.modeling.cnn  # noqa: F401  registers two networks with timm
from hf_pneumonia.data.images import INTERPOLATION
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# ImageNet's channel means and deviations, averaged: three different values would only tint a gray image.
MEAN, STD = 0.449, 0.226


def build_model(
    architecture: str, image_size: int, drop_rate: float = 0.0, pretrained: str = "false"
) -> TimmWrapperForImageClassification:
    """Build a two-class network.

    Args:
        architecture: a timm model name, with or without a weights tag (`resnet18.a1_in1k`), or its Hub name
            (`timm/resnet18.a1_in1k`, `hf-hub:timm/resnet18.a1_in1k`).
        image_size: side of the input in pixels.
        drop_rate: dropout before the head, 0 to 1.
        pretrained: "true": download timm's weights from the Hub; "false": random initialisation; otherwise a
            local folder with a `model.safetensors` of that architecture. The head is always new.

    Returns:
        A network that maps (b, 3, image_size, image_size) float from `network_input` to (b, 2) logits in the
        order of LABELS. Its `save_pretrained` writes timm's parameter names.

    Raises:
        UsageError: timm does not know the architecture, it can't be saved, or it has no such weights.
    """
    name, architecture = architecture, timm_name(architecture)
    if not timm.is_model(architecture):
        close = _similar_names(architecture)
        hint = f"Did you mean {', '.join(close)}?" if close else "See `timm.list_models()`"
        raise UsageError(
            "unknown-architecture", f"--model: expected a timm architecture, got {name!r}. {hint}"
        )
    try:
        pretrained_cfg = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:
        raise UsageError(
            "unknown-architecture", f"--model {architecture}: {error}. Leave out the tag after the dot"
        ) from error
    # Arguments that a loader needs to build the same network.
    arguments: dict = {"drop_rate": drop_rate} if drop_rate else {}
    # A vision transformer's grid of patches is fixed when it is built.
    if pretrained_cfg.fixed_input_size:
        arguments["img_size"] = image_size
    network = _timm_network(architecture, pretrained, {"num_classes": len(LABELS), **arguments})
    tensors = network.state_dict(keep_vars=True).values()
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise UsageError(
            "shared-weights",
            f"--model {architecture}: its layers share weights, which safetensors can't store. Use another",
        )
    config = TimmWrapperConfig(
        architecture=architecture.split(".")[0],
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        model_args=arguments,  # not None: timm's loader unpacks it
    )
    config.pretrained_cfg = _preprocessing(network, image_size)
    config.num_features = network.num_features
    # The class's constructor would prefix the saved keys, and timm could not read them.
    model = TimmWrapperForImageClassification.from_pretrained(
        None, config=config, state_dict=network.state_dict()
    )
    check_input_size(model, architecture, image_size)
    return model


def timm_name(name: str) -> str:
    """Return the timm name of an architecture, without the prefix of a Hub name."""
    return re.sub(r"^(hf[-_]hub:)?(timm/)?", "", name)


def _similar_names(name: str) -> list[str]:
    """Return up to three architectures of similar name: resnet50 for "microsoft/resnet-50"."""
    letters = re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].split(".")[0].lower())
    by_letters = {re.sub(r"[^a-z0-9]", "", model): model for model in timm.list_models()}
    if letters in by_letters:
        return [by_letters[letters]]
    longer = sorted((key for key in by_letters if letters and key.startswith(letters)), key=len)
    return [by_letters[key] for key in longer[:3] or difflib.get_close_matches(letters, by_letters, 3)]


@torch.no_grad()
def trains_on_one_image(model: TimmWrapperForImageClassification, size: int) -> bool:
    """Return whether the model can train on a batch of one image of `size` x `size` pixels.

    BatchNorm can't if the feature map is a single pixel. The model is not modified.
    """
    try:
        copy.deepcopy(model).train()(network_input(torch.zeros(1, size, size, device=model.device)))
    except ValueError:
        return False
    return True


@torch.no_grad()
def check_input_size(
    model: TimmWrapperForImageClassification, architecture: str, size: int, flag: str = "--image_size"
) -> None:
    """Check that a network accepts images of `size` x `size` pixels and can be calibrated.

    Leaves the model in evaluation mode.

    Args:
        model: from `build_model`.
        architecture, flag: for the error message.
        size: side of the input in pixels.

    Raises:
        UsageError: it does not accept them, or its head is not linear.
    """
    images = torch.rand(2, size, size, generator=torch.Generator().manual_seed(0))
    model.eval()
    try:
        logits = model(network_input(images)).logits
        scale_logits(model, 2)
        doubled = model(network_input(images)).logits
        scale_logits(model, 0.5)
    except (RuntimeError, AssertionError, AttributeError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            "unsupported-image-size",
            f"{flag} {size}: expected a size that {architecture} accepts ({reason}). Use another",
        ) from error
    if logits.shape != (2, len(LABELS)) or not torch.allclose(doubled, 2 * logits, rtol=1e-3, atol=1e-4):
        raise UsageError(
            "nonlinear-head",
            f"--model {architecture}: expected a linear head, got one that can't be calibrated. Use another",
        )


def network_input(images: torch.Tensor) -> torch.Tensor:
    """Normalise images and repeat them in three channels, bit for bit as timm's evaluation transform.

    Three channels, since transformers' `pipeline` can't use a one-channel network.

    Args:
        images: (b, h, w) uint8, or float in [0, 1] from the augmentation.

    Returns:
        (b, 3, h, w) float32, normalised, channels last in memory.
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    images = images.unsqueeze(1).sub(MEAN).div_(STD)
    return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def scale_logits(model: TimmWrapperForImageClassification, factor: float, offset: float = 0.0) -> None:
    """Fold a calibration into the last linear layer: multiply the logits, then add `offset` to class 1.

    The softmax of any loader is then calibrated. An offset needs `has_bias`.
    """
    # A network with several heads, such as DeiT distilled, averages their logits.
    for last in _last_layers(model):
        last.weight.mul_(factor)
        if last.bias is not None:
            last.bias.mul_(factor)
            last.bias[1] += offset


def has_bias(model: TimmWrapperForImageClassification) -> bool:
    """Return whether the last linear layer has a bias."""
    return all(last.bias is not None for last in _last_layers(model))


def _last_layers(model: TimmWrapperForImageClassification) -> list[torch.nn.Module]:
    heads = model.timm_model.get_classifier()
    linear = (torch.nn.Linear, torch.nn.Conv2d)
    return [
        [module for module in head.modules() if isinstance(module, linear)][-1]
        for head in (heads if isinstance(heads, tuple) else (heads,))
    ]


def _timm_network(architecture: str, pretrained: str, arguments: dict) -> torch.nn.Module:
    if pretrained == "false":
        return timm.create_model(architecture, **arguments)
    if pretrained == "true":
        try:
            # Other weights are pickles from a URL, which are never loaded.
            if not timm.get_pretrained_cfg(architecture).hf_hub_id:
                raise ValueError("the Hub has none as safetensors")
            logger.info("downloading the weights of %s from the Hub", architecture)
            return timm.create_model(architecture, pretrained=True, **arguments)
        # No connection, no such file, no weights of that name.
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                "weights-unavailable",
                f"--pretrained true: the weights of {architecture} can't be downloaded "
                f"({str(error).splitlines()[0]}). Give a folder with their model.safetensors, or train from "
                "scratch with --pretrained false",
            ) from error
    file = _weights_file(architecture, Path(pretrained).expanduser())
    try:
        # timm's loader drops the head and resizes position embeddings.
        return timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments
        )
    except RuntimeError as error:  # tensors of other shapes
        raise UsageError(
            "weights-mismatch",
            f"--pretrained {pretrained}: expected weights of {architecture} at this --image_size, got other "
            "shapes. Set --model and --image_size to those of the weights",
        ) from error


def _weights_file(architecture: str, folder: Path) -> Path:
    """Return the folder's weights after checking their architecture: timm would ignore other tensors."""
    file = folder / "model.safetensors" if folder.is_dir() else folder
    if file.suffix != ".safetensors" or not file.is_file():
        raise UsageError(
            "weights-not-found",
            f"--pretrained: expected true, false, or a folder with model.safetensors, got {str(folder)!r}",
        )
    try:
        with safe_open(file, "pt") as weights:
            found = set(weights.keys())
    except SafetensorError as error:
        raise UsageError(
            "unreadable-weights", f"--pretrained {folder}: expected safetensors, got {error}. Copy them again"
        ) from error
    with torch.device("meta"):
        network = timm.create_model(architecture)
    head = network.pretrained_cfg["classifier"]
    head = (head,) if isinstance(head, str) else tuple(head)
    wrong = [name for name in found ^ set(network.state_dict()) if not name.startswith(head)]
    if wrong:
        raise UsageError(
            "weights-mismatch",
            f"--pretrained {folder}: expected weights of {architecture}, got another architecture "
            f"({len(wrong)} tensors differ, such as {min(wrong)}). Set --model to that of the weights",
        )
    return file


def _preprocessing(network: torch.nn.Module, image_size: int) -> dict:
    """Return the preprocessing of the training as a pretrained_cfg for timm and transformers."""
    return {
        "tag": "pneumonia",
        "custom_load": False,
        "input_size": [3, image_size, image_size],
        "fixed_input_size": False,
        "interpolation": INTERPOLATION,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "num_classes": len(LABELS),
        "pool_size": None,
        "first_conv": network.pretrained_cfg.get("first_conv"),
        "classifier": network.pretrained_cfg.get("classifier"),
    }
