"""The moving average of the weights: its values, and where it takes the network's place."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from trainings import changed, scored, weights

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.callbacks import WeightAverage

FLAGS = ("--ema_decay", "0.8", "--num_train_epochs", "3", "--save_total_limit", "9")


def _average_by_hand(states, decay):
    """The warm-up of timm's ModelEmaV3, written out: 1 - (1 + step) ** (-2 / 3), at most `decay`."""
    average = copy.deepcopy(states[0])
    for step, state in enumerate(states[1:], start=1):
        keep = 0 if step == 1 else min(1 - step ** (-2 / 3), decay)
        for name, value in state.items():
            average[name] = keep * average[name] + (1 - keep) * value if value.is_floating_point() else value
    return average


def test_the_average_is_that_of_the_weights_after_every_step(trainer):
    run = trainer(*FLAGS, "--load_best_model_at_end", "false", "--save_strategy", "no")
    states, step = [weights(run.model)], run.average.on_step_end

    def remember(args, state, control, model=None, **kwargs):
        states.append(weights(model))
        step(args, state, control, model=model, **kwargs)

    run.average.on_step_end = remember
    run.train()
    assert len(states) == 10
    expected, left = _average_by_hand(states, 0.8), run.model.state_dict()
    for name in expected:
        torch.testing.assert_close(left[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_average_is_scored_and_kept_and_the_network_trains_on_with_its_own_weights(trainer, tmp_path):
    run = scored(trainer(*FLAGS), 0.6, 0.9, 0.7)
    seen, own, scores = [], [], run.compute_metrics
    run.compute_metrics = lambda one: (
        seen.append((weights(run.model), weights(run.average.network))) or scores(one)
    )
    run.callback_handler.callbacks[-1].on_epoch_end = lambda *a, model=None, **k: own.append(weights(model))
    run.train()
    # While it is scored, each stands in the other's place.
    for (inside, outside), trained in zip(seen, own, strict=True):
        assert not changed(outside, trained) and "timm_model.fc.weight" in changed(inside, trained)
    best = tmp_path / "run" / "checkpoint-6"
    assert run.kept_epoch == 2
    assert not changed(load_file(best / "ema.safetensors"), run.model.state_dict())
    kept = load_file(best / "model.safetensors")
    assert not torch.equal(run.model.state_dict()["timm_model.fc.weight"], kept["fc.weight"])


def test_standing_in_ends_with_an_error_too():
    network = torch.nn.Linear(2, 2)
    before = weights(network)
    average = WeightAverage(network, 0.9)
    average.network.weight.data.zero_()
    with pytest.raises(ZeroDivisionError), average.standing_in(network):
        assert not network.weight.any()
        raise ZeroDivisionError
    assert not changed(before, network.state_dict())


@pytest.mark.parametrize("then, now", [("0.0", "0.9"), ("0.9", "0.0")])
def test_going_on_with_or_without_an_average_unlike_before_is_an_error(trainer, tmp_path, then, now):
    flags = ("--num_train_epochs", "1", "--ema_decay")
    trainer(*flags, then).train()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    with pytest.raises(UsageError, match=f"ema_decay {then}, and not {now}"):
        trainer(*flags, now).train(resume_from_checkpoint=str(checkpoint))
