"""A trained network -> the same one, quicker to ask on a CPU: it answers as before, and can't be trained.

What follows a convolution is folded into it. Its weights are laid in the order that oneDNN, which computes
convolutions on a CPU, reads them in: torch turns them round anew for every batch, a third of the time of a
single film. And a film is gray: the first convolution is fed it once, not thrice (benchmarks/README.md).
"""

import copy
import logging
from contextlib import contextmanager

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hf_pneumonia.modeling.rest import same_tensors

logger = logging.getLogger(__name__)

# How far the answers of the two may lie apart, relative to the largest: both round in other places.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class PackedConv2d(nn.Module):
    """A convolution whose weights stand in the order that oneDNN reads them in.

    torch's compiler packs weights by the same two operators; they are no public part of torch.

    Args:
        conv: of the kind that `_is_plain` says, on the CPU.
        shape: of what it was fed once, (b, c, h, w); other numbers of films and other sizes will do.
        relu: whether what is below zero becomes zero.
        gray: whether all its input channels are always one, of which it then reads the first alone.
    """

    def __init__(self, conv: nn.Conv2d, shape: torch.Size, relu: bool, gray: bool) -> None:
        super().__init__()
        self.places = conv.padding, conv.stride, conv.dilation, conv.groups
        self.then = "relu" if relu else "none"
        self.bias = None if conv.bias is None else conv.bias.detach()
        weight = conv.weight.detach()
        self.channels = shape[1]
        if gray:
            self.channels, weight = 1, weight.float().sum(1, keepdim=True).to(weight.dtype)
        shape = [shape[0], self.channels, *shape[2:]]
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *self.places, shape)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs[:, : self.channels].contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(
            inputs, self.weight, self.bias, *self.places, self.then, [], ""
        )


@torch.inference_mode()
def packed(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """A copy of a network with its convolutions packed; the network itself where that can't be had.

    Args:
        network: in evaluation mode; left as it is.
        inputs: what it is fed, one film of noise will do, of its own dtype and device.

    Returns:
        What answers as the network does, but for rounding, to inputs of any number and size. Its modules have
        the same names. The network itself on another device than the CPU, in another precision than float32
        and bfloat16, without oneDNN, or where the answers differ.
    """
    tolerance = _TOLERANCE.get(inputs.dtype)
    if inputs.device.type != "cpu" or tolerance is None or not torch.backends.mkldnn.is_available():
        return network
    # Films that the packing did not see: what was zero for one need not be for others.
    checked = torch.cat([inputs, -inputs.flip(2), torch.nn.functional.avg_pool2d(inputs, 9, 1, 4)])
    expected = network(checked).logits
    try:
        quick = _pack(same_tensors(network), inputs)
        answer = quick(checked).logits
    # Operators that this torch does not have; or no weight is left for transformers to see the device by.
    except (RuntimeError, AttributeError, TypeError, StopIteration) as error:
        logger.debug("convolutions are not packed: %s", error)
        return network
    # Written so that nan keeps the network as it is.
    near = (answer - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)
    return quick if near else network


def _pack(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    # Tensors of inference mode do not count their changes.
    with torch.inference_mode(False), torch.no_grad(), _followed(network) as (fed, after, gray):
        network(inputs.clone())
    gray = next(iter(gray), None)
    names = {module: name for name, module in network.named_modules()}
    stages = _stages(network)
    for conv, shape in fed.items():
        if conv in stages:
            continue
        fused, norm = conv, after.get(conv)
        last = conv
        if isinstance(norm, nn.BatchNorm2d):
            both = (copy.deepcopy(module).float() for module in (conv, norm))
            fused, last = fuse_conv_bn_eval(*both).to(conv.weight.dtype), norm
            left = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
            network.set_submodule(names[norm], left)
        relu = None if last in stages else after.get(last)
        if type(relu) is nn.ReLU:
            network.set_submodule(names[relu], nn.Identity())
        network.set_submodule(names[conv], PackedConv2d(fused, shape, type(relu) is nn.ReLU, conv is gray))
    return network


def _stages(network: nn.Module) -> set[nn.Module]:
    """What `watch_stages` looks at: such a module is to give what it gave."""
    timm_model = getattr(network, "timm_model", network)
    return {timm_model.get_submodule(stage["module"]) for stage in getattr(timm_model, "feature_info", [])}


@contextmanager
def _followed(network: nn.Module):
    """While it is open, for what passes: the shape that each convolution is fed; which module takes just what
    another gives; and the first convolution, if all channels of a film are one to it. A module that is passed
    twice is left out."""
    fed: dict[nn.Module, torch.Size] = {}
    after: dict[nn.Module, nn.Module] = {}
    gray: list[nn.Module] = []
    passed: set[nn.Module] = set()
    given: list[tuple[torch.Tensor, int, nn.Module]] = []

    def before(module: nn.Module, inputs: tuple) -> None:
        first, again = not passed, module in passed
        passed.add(module)
        if again:
            fed.pop(module, None)
            for giver in [giver for giver, taker in after.items() if module in (giver, taker)]:
                del after[giver]
            return
        if _is_plain(module):
            fed[module] = inputs[0].shape
            if first and module.groups == 1 and (inputs[0] == inputs[0][:, :1]).all():
                gray.append(module)
        for tensor, version, giver in given[-1:]:
            if tensor is inputs[0] and tensor._version == version:  # a shortcut may have been added to it
                after[giver] = module

    def behind(module: nn.Module, _, output: torch.Tensor) -> None:
        given[:] = [(output, output._version, module)]

    whole = (BatchNormAct2d,)  # modules that are looked at as one, whatever is inside
    leaves = [
        module
        for module in network.modules()
        if isinstance(module, whole) or not (any(module.children()) or isinstance(module, nn.Identity))
    ]
    hooks = [leaf.register_forward_pre_hook(before) for leaf in leaves]
    hooks += [leaf.register_forward_hook(behind) for leaf in leaves]
    try:
        yield fed, after, gray
    finally:
        for hook in hooks:
            hook.remove()


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d:  # a subclass may do more than convolve
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)
