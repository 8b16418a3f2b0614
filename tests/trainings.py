"""What the tests of trainings ask of a Trainer."""

import torch


def weights(network) -> dict[str, torch.Tensor]:
    """A copy of a network's weights and statistics."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    """Names of the tensors that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def scored(run, *scores: float):
    """The same trainer whose epochs have these scores."""
    left = iter(scores)
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(left), "accuracy": 0.5}
    return run


def train_noting_weights(run) -> list[dict]:
    """Train; return the weights at the start and as each epoch's scoring begins."""
    states, evaluate = [weights(run.model)], run.evaluate

    def note_and_evaluate(*args, **kwargs):
        states.append(weights(run.model))
        return evaluate(*args, **kwargs)

    run.evaluate = note_and_evaluate
    run.train()
    return states
