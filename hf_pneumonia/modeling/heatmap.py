"""Grad-CAM heat maps on the last feature map with enough resolution.

Selvaraju et al.: Grad-CAM, Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
For a head of global average pooling and one linear layer it equals the class activation map of Zhou et al.:
Learning Deep Features for Discriminative Localization, CVPR 2016.
"""

import threading

import torch
import torch.nn.functional as F

# Smallest side of a usable feature map, in cells; below it, the stage before is used. ResNet18's peak hits
# the simulated lesion (in brackets: by chance) in 64% (56%) with 3 x 3 cells, 96% (74%) with the stage before
# them, 88% (74%) with 6 x 6.
MIN_CELLS = 6


def heat_maps(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return Grad-CAM maps of the evidence for pneumonia.

    The gradient of the logit difference, averaged over the feature map, weights its channels; the positive
    part of their sum is the evidence. The map is that of `finer_stage`, or the last one. For a vision
    transformer with a class token it is the input of the last block, whose patch outputs are unused. Threads
    may share the network.

    Args:
        model: in evaluation mode, with timm's network as `timm_model`. It is not modified.
        inputs: (b, 3, s, s) float from `network_input`, on the model's device.

    Returns:
        (b, s, s) float32 on the same device, 0 to 1, with a maximum of 1 in each image; all 0 in an image
        without evidence.

    Raises:
        ValueError: it is not a timm network, it has no spatial feature map, or its logits are not finite.
    """
    return logits_and_heat_maps(model, inputs)[1]


def logits_and_heat_maps(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's (b, 2) logits and their `heat_maps`, from one forward pass.

    Args, Raises: as `heat_maps`.
    """
    network = getattr(model, "timm_model", model)
    adapter = getattr(model, "adapter", None)  # set by `load_model` for other preprocessing or label order
    # Tensors made under torch.inference_mode can't have gradients: leave that mode and copy the input.
    with torch.inference_mode(False), torch.enable_grad():
        adapted = inputs.clone() if adapter is None else adapter.convert_inputs(inputs.clone())
        features, logits = _features_and_logits(network, adapted)
        logits = logits if adapter is None else adapter.reorder_logits(logits)
        if not torch.isfinite(logits).all():
            raise ValueError("the network's logits are not finite")
        # The gradient of the features only: no weight gets one.
        (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), features)
    logits = logits.detach()
    features, gradient = (_grid(network, tensor.detach().float()) for tensor in (features, gradient))
    evidence = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    maps = F.interpolate(evidence, inputs.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return logits, torch.where(highest > 0, maps / highest.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def _features_and_logits(network: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise ValueError(f"{type(network).__name__} has no forward_features and forward_head as in timm")
    if getattr(network, "global_pool", None) == "token" and hasattr(network, "blocks"):
        return _at(network, network.blocks[-1], inputs, before=True)
    if stage := finer_stage(network, inputs.shape[-1]):
        return _at(network, network.get_submodule(stage), inputs)
    with torch.no_grad():
        features = network.forward_features(inputs)
    if not torch.is_tensor(features):
        raise ValueError(
            f"{type(network).__name__}: expected one feature map, got a {type(features).__name__}"
        )
    features.requires_grad_()
    return features, network.forward_head(features.clone())  # some heads work in place


def finer_stage(network: torch.nn.Module, side: int) -> str | None:
    """Return the name of the stage before the last feature map, if that has fewer than MIN_CELLS a side.

    Args:
        network: from timm, with its `feature_info`.
        side: side of the input in pixels.

    Returns:
        The last stage of a higher resolution; None if the last map is large enough, or no stage is known.
    """
    stages = getattr(network, "feature_info", [])
    last = stages[-1]["reduction"] if stages else 1
    if -(-side // last) >= MIN_CELLS:
        return None
    return next((stage["module"] for stage in reversed(stages) if stage["reduction"] < last), None)


def _at(
    network: torch.nn.Module, module: torch.nn.Module, inputs: torch.Tensor, before: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a module's output (its input with `before`) and the logits."""
    kept, thread = [], threading.get_ident()

    def keep(_, arguments: tuple, output: torch.Tensor | None = None):
        if threading.get_ident() != thread:  # another thread's image
            return None
        value = arguments[0] if before else output
        if not torch.is_tensor(value):
            raise ValueError(
                f"{type(network).__name__}: expected one feature map, got a {type(value).__name__}"
            )
        kept.append(value.detach().requires_grad_())
        copied = kept[0].clone()  # some layers work in place
        return (copied, *arguments[1:]) if before else copied

    with module.register_forward_pre_hook(keep) if before else module.register_forward_hook(keep):
        logits = network.forward_head(network.forward_features(inputs))
    return kept[0], logits


def _grid(network: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Convert a feature map of timm (channels first, channels last, or tokens) to (b, c, h, w)."""
    if features.ndim == 3:
        patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        if side**2 != patches.shape[1]:
            raise ValueError(
                f"{type(network).__name__}: expected a square grid, got {patches.shape[1]} patches"
            )
        features = patches.transpose(1, 2).unflatten(2, (side, side))
    elif features.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    if features.ndim != 4 or features.shape[2] * features.shape[3] == 1:
        shape = tuple(features.shape[1:])
        raise ValueError(f"{type(network).__name__}: expected a feature map, got {shape}. Use larger images")
    return features
