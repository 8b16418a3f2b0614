"""Grad-CAM on a network's last feature map that is fine enough.

Selvaraju et al.: Grad-CAM, Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
Where a mean over the map and one linear layer make the head, it is the class activation map of Zhou et al.:
Learning Deep Features for Discriminative Localization, CVPR 2016.
"""

import threading

import torch
import torch.nn.functional as F

# Places a side below which the last map is passed over for the stage before it. ResNet18 on simulated images,
# the peak within a tenth of the side of the lesion (in brackets: of other images' lesions, by chance): at 96
# pixels the last map, 3 x 3, 64% (56%), the stage before it 96% (74%); at 192 the last, 6 x 6, 88% (74%).
PLACES = 6


def heat_maps(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return where the network saw pneumonia rather than normal.

    The gradient of the difference of the two logits with respect to each channel of the feature map, averaged
    over places, weights the channels; what is left of their sum above zero speaks for pneumonia. The map is
    the network's last, or that of `finer_stage`. A vision transformer that answers from its class token is
    read before its last block: after it, no patch has a say. Threads may share the network.

    Args:
        model: in evaluation mode, with timm's network as `timm_model`; left as it is.
        inputs: (b, 3, s, s) float of any precision, as `network_input` makes them, on the model's device.

    Returns:
        (b, s, s) float32 on the same device, 0 to 1, the highest value of each image being 1; all 0 where
        nothing speaks for pneumonia.

    Raises:
        ValueError: it is no network of timm's, has no feature map with places, or its logits are not finite.
    """
    return logits_and_heat_maps(model, inputs)[1]


def logits_and_heat_maps(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's (b, 2) logits and the `heat_maps` that explain them, from one pass.

    Args, Raises: as `heat_maps`.
    """
    network = getattr(model, "timm_model", model)
    adapter = getattr(model, "adapter", None)  # of a network of other people, from `load_model`
    # Tensors of torch.inference_mode can't have gradients, so the caller's is left and the input copied.
    with torch.inference_mode(False), torch.enable_grad():
        fed = inputs.clone() if adapter is None else adapter.feed(inputs.clone())
        features, logits = _features_and_logits(network, fed)
        logits = logits if adapter is None else adapter.answer(logits)
        if not torch.isfinite(logits).all():
            raise ValueError("the network's answers are not finite, so there is nothing to explain")
        # Asked for the features alone, so that no weight is left with a gradient.
        (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), features)
    logits = logits.detach()
    features, gradient = (_grid(network, one.detach().float()) for one in (features, gradient))
    evidence = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    maps = F.interpolate(evidence, inputs.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return logits, torch.where(highest > 0, maps / highest.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def _features_and_logits(network: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise ValueError(f"{type(network).__name__} does not part its features from its head as timm does")
    if getattr(network, "global_pool", None) == "token" and hasattr(network, "blocks"):
        return _at(network, network.blocks[-1], inputs, before=True)
    if stage := finer_stage(network, inputs.shape[-1]):
        return _at(network, network.get_submodule(stage), inputs)
    with torch.no_grad():
        features = network.forward_features(inputs)
    if not torch.is_tensor(features):
        raise ValueError(f"{type(network).__name__} has {type(features).__name__} features, and no one map")
    features.requires_grad_()
    return features, network.forward_head(features.clone())  # some heads work in place


def finer_stage(network: torch.nn.Module, side: int) -> str | None:
    """Return the name of the last stage of another fineness in timm's `feature_info`, where the last map has
    fewer than PLACES a side; else None.

    Args:
        network: timm's.
        side: of its input, in pixels.
    """
    stages = getattr(network, "feature_info", [])
    last = stages[-1]["reduction"] if stages else 1
    if -(-side // last) >= PLACES:
        return None
    return next((stage["module"] for stage in reversed(stages) if stage["reduction"] < last), None)


def _at(
    network: torch.nn.Module, module: torch.nn.Module, inputs: torch.Tensor, before: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one module gives, or takes with `before`, and the logits that come of it."""
    kept, thread = [], threading.get_ident()

    def keep(_, arguments: tuple, output: torch.Tensor | None = None):
        if threading.get_ident() != thread:  # somebody else's image
            return None
        value = arguments[0] if before else output
        if not torch.is_tensor(value):
            raise ValueError(f"{type(network).__name__} hands on a {type(value).__name__}, and no one map")
        kept.append(value.detach().requires_grad_())
        passed = kept[0].clone()  # some layers work in place
        return (passed, *arguments[1:]) if before else passed

    with module.register_forward_pre_hook(keep) if before else module.register_forward_hook(keep):
        logits = network.forward_head(network.forward_features(inputs))
    return kept[0], logits


def _grid(network: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    """(b, c, h, w) of a feature map in any of the forms that timm has: channels last, or tokens."""
    if features.ndim == 3:
        patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        if side**2 != patches.shape[1]:
            raise ValueError(f"{type(network).__name__}'s {patches.shape[1]} patches make no square grid")
        features = patches.transpose(1, 2).unflatten(2, (side, side))
    elif features.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    if features.ndim != 4 or features.shape[2] * features.shape[3] == 1:
        shape = tuple(features.shape[1:])
        raise ValueError(f"{type(network).__name__}'s features {shape} have no places; try larger images")
    return features
