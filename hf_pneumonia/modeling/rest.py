"""A network and a place in it -> what is behind that place, as a network of its own."""

import copy

import torch
from torch import nn

_TOLERANCE = 1e-3  # relative to the largest logit: in half precision kernels may differ


def same_tensors(network: nn.Module) -> nn.Module:
    """A copy whose modules are its own and whose tensors are the network's: nothing is held twice."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def rest_behind(network: nn.Module, place: str, inputs: torch.Tensor) -> nn.Module | None:
    """A copy of a network that takes what the module at a place gives, and answers as the network does.

    All modules that are done when that module is hand on what they are given.

    Args:
        network: in evaluation mode, of one input; left as it was.
        place: name of one of its modules.
        inputs: what it is fed, to try the copy with; a film of noise will do.

    Returns:
        The copy, which shares the network's tensors; None where it would answer otherwise, as where more than
        modules stands before the place, or more than one thing is handed on.
    """
    done, given = [], []

    def listen(name: str, module: nn.Module):
        def keep(_, __, output) -> None:
            if not given:
                done.append(name)
            if name == place:
                given.append(output.clone() if torch.is_tensor(output) else output)

        return module.register_forward_hook(keep)

    hooks = [listen(name, module) for name, module in network.named_modules() if name]
    try:
        expected = network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if len(given) != 1 or not torch.is_tensor(given[0]):
        return None
    rest = same_tensors(network)
    try:
        for name in done:
            rest.set_submodule(name, nn.Identity())
        answer = rest(given[0])
    # Of what was no chain of modules; an architecture may raise nearly anything.
    except Exception:
        return None
    if answer.shape != expected.shape:
        return None
    # Written so that nan is no rest.
    return rest if (answer - expected).abs().max() <= _TOLERANCE * expected.abs().max() else None
