"""A timm architecture by name -> a network that transformers and timm can both load."""

import copy
import difflib
import logging
import re
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

import hf_pneumonia.modeling.cnn  # noqa: F401  registers its two networks with timm
from hf_pneumonia.data.images import INTERPOLATION
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# ImageNet's three means and deviations, averaged: three different numbers would only tint a gray image.
MEAN, STD = 0.449, 0.226


def build_model(
    architecture: str, image_size: int, drop_rate: float = 0.0, pretrained: str = "false"
) -> TimmWrapperForImageClassification:
    """Build a two-class network.

    Args:
        architecture: a timm model name, with or without a weights tag (`resnet18.a1_in1k`), also as the Hub
            calls it (`timm/resnet18.a1_in1k`, `hf-hub:timm/resnet18.a1_in1k`).
        image_size: side of the input in pixels.
        drop_rate: dropout before the head, 0 to 1.
        pretrained: "true" fetches timm's weights of that name from the Hub; "false" starts from timm's
            initialisation; anything else is a local folder with a `model.safetensors` of that architecture.
            The head is new in every case.

    Returns:
        A network for (b, 3, image_size, image_size) float input as `network_input` makes it, giving (b, 2)
        logits in the order of LABELS. Its `save_pretrained` writes timm's own keys.

    Raises:
        UsageError: timm does not know the architecture, it can't be saved, or the weights can't be had.
    """
    name, architecture = architecture, timm_name(architecture)
    if not timm.is_model(architecture):
        close = _like(architecture)
        raise UsageError(
            "build-model",
            f"--model expects a timm architecture, got {name!r}"
            + (f"; did you mean {', '.join(close)}?" if close else "; `timm.list_models()` lists them"),
        )
    try:
        pretrained_cfg = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:
        raise UsageError(
            "build-model", f"--model {architecture}: {error}; leave out what follows the dot"
        ) from error
    # What a loader must repeat to build the same network.
    arguments: dict = {"drop_rate": drop_rate} if drop_rate else {}
    # A vision transformer's grid of patches is fixed when it is built.
    if pretrained_cfg.fixed_input_size:
        arguments["img_size"] = image_size
    network = _timm_network(architecture, pretrained, {"num_classes": len(LABELS), **arguments})
    tensors = network.state_dict(keep_vars=True).values()
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise UsageError(
            "build-model", f"--model {architecture}: its layers share weights, which safetensors can't hold"
        )
    config = TimmWrapperConfig(
        architecture=architecture.split(".")[0],
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        model_args=arguments,  # never null: timm's own loader unpacks it
    )
    config.pretrained_cfg = _preprocessing(network, image_size)
    config.num_features = network.num_features
    # Built from a state dict: the class's own constructor would save keys that timm can't read.
    model = TimmWrapperForImageClassification.from_pretrained(
        None, config=config, state_dict=network.state_dict()
    )
    try_images(model, architecture, image_size)
    return model


def timm_name(name: str) -> str:
    """Return the name of an architecture as timm has it, without what the Hub puts in front of it."""
    return re.sub(r"^(hf[-_]hub:)?(timm/)?", "", name)


def _like(name: str) -> list[str]:
    """Up to three architectures with the letters of a name: "microsoft/resnet-50" is like resnet50."""
    letters = re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].split(".")[0].lower())
    named = {re.sub(r"[^a-z0-9]", "", one): one for one in timm.list_models()}
    if letters in named:
        return [named[letters]]
    found = sorted((len(key), one) for key, one in named.items() if letters and key.startswith(letters))
    return [one for _, one in found[:3]] or [
        named[key] for key in difflib.get_close_matches(letters, named, 3)
    ]


@torch.no_grad()
def trains_on_one_image(model: TimmWrapperForImageClassification, size: int) -> bool:
    """Whether a batch of one image of `size` pixels a side can be trained on; the model is left as it is.

    BatchNorm can't where one pixel is left of it.
    """
    try:
        copy.deepcopy(model).train()(network_input(torch.zeros(1, size, size, device=model.device)))
    except ValueError:
        return False
    return True


@torch.no_grad()
def try_images(
    model: TimmWrapperForImageClassification, architecture: str, size: int, flag: str = "--image_size"
) -> None:
    """Check before the training that the network takes images of `size` pixels a side and can be calibrated.

    Leaves the model in evaluation mode; architecture and flag are for the message.

    Raises:
        UsageError: it does not, or can't.
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
            "try-images", f"--model {architecture} does not work with {flag} {size}: {reason}"
        ) from error
    if logits.shape != (2, len(LABELS)) or not torch.allclose(doubled, 2 * logits, rtol=1e-3, atol=1e-4):
        raise UsageError(
            "try-images", f"--model {architecture}: its head is not linear and can't be calibrated"
        )


def network_input(images: torch.Tensor) -> torch.Tensor:
    """Scale images as timm's evaluation transform does, to the last bit.

    Args:
        images: (b, h, w) uint8, or float in [0, 1] as augmentation leaves it.

    Returns:
        (b, 3, h, w) float32, normalised, channels last in memory. Stored images have one channel; three are
        made here, since a one-channel network can't be loaded by `pipeline`.
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    images = images.unsqueeze(1).sub(MEAN).div_(STD)
    return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def scale_logits(model: TimmWrapperForImageClassification, factor: float, offset: float = 0.0) -> None:
    """Multiply the logits by `factor`, then add `offset` to that of class 1, in the last linear layer.

    So every loader's softmax is calibrated without knowing of a temperature. An offset needs `has_bias`.
    """
    # Where there are several heads, as in DeiT distilled, their logits are averaged.
    for last in _last_layers(model):
        last.weight.mul_(factor)
        if last.bias is not None:
            last.bias.mul_(factor)
            last.bias[1] += offset


def has_bias(model: TimmWrapperForImageClassification) -> bool:
    """Whether the network's last linear layer can hold an offset of the logits."""
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
            # Others have no weights, or a pickle at an address, which is never loaded.
            if not timm.get_pretrained_cfg(architecture).hf_hub_id:
                raise ValueError("the Hub has none as safetensors")
            logger.info("fetching the weights of %s from the Hub", architecture)
            return timm.create_model(architecture, pretrained=True, **arguments)
        # No connection, no such file, no weights of that name: timm and the Hub raise these three.
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                "timm-network",
                f"--pretrained true: the weights of {architecture} can't be fetched "
                f"({str(error).splitlines()[0]}); give a folder that holds their model.safetensors, or start "
                "from scratch with --pretrained false",
            ) from error
    file = _weights_file(architecture, Path(pretrained).expanduser())
    try:
        # Through timm's own loader, which drops the head and fits position embeddings to another input size.
        return timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments
        )
    except RuntimeError as error:  # tensors of other shapes
        raise UsageError(
            "timm-network",
            f"--pretrained {pretrained}: the weights have other shapes than {architecture} at this "
            "--image_size; name their architecture and size",
        ) from error


def _weights_file(architecture: str, folder: Path) -> Path:
    """The folder's weights, checked to be of this architecture: timm loads what fits and ignores the rest."""
    file = folder / "model.safetensors" if folder.is_dir() else folder
    if file.suffix != ".safetensors" or not file.is_file():
        raise UsageError(
            "weights-file",
            f"--pretrained expects true, false, or a folder with model.safetensors, got {str(folder)!r}",
        )
    try:
        with safe_open(file, "pt") as weights:
            found = set(weights.keys())
    except SafetensorError as error:
        raise UsageError(
            "weights-file", f"--pretrained {folder}: not a safetensors file ({error})"
        ) from error
    with torch.device("meta"):
        network = timm.create_model(architecture)
    head = network.pretrained_cfg["classifier"]
    head = (head,) if isinstance(head, str) else tuple(head)
    wrong = [name for name in found ^ set(network.state_dict()) if not name.startswith(head)]
    if wrong:
        raise UsageError(
            "weights-file",
            f"--pretrained {folder}: weights of another architecture than {architecture} "
            f"({len(wrong)} tensors differ, {min(wrong)} among them); name theirs with --model",
        )
    return file


def _preprocessing(network: torch.nn.Module, image_size: int) -> dict:
    """What timm and transformers need to prepare an image exactly as training does."""
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
