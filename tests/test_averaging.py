import copy

import pytest
import torch
from safetensors.torch import load_file

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.averaging import WeightAverage

FLAGS = ("--ema_decay", "0.8", "--num_train_epochs", "3", "--save_total_limit", "9")


def _average_by_hand(states, decay):
    """The warm-up of timm's ModelEmaV3, written out: 1 - (1 + step) ** (-2 / 3), at most `decay`."""
    average = copy.deepcopy(states[0])
    for step, state in enumerate(states[1:], start=1):
        keep = 0 if step == 1 else min(1 - step ** (-2 / 3), decay)
        for name, value in state.items():
            average[name] = keep * average[name] + (1 - keep) * value if value.is_floating_point() else value
    return average


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_average_is_that_of_the_weights_after_every_step(trainer):
    run = trainer(*FLAGS, "--load_best_model_at_end", "false")
    states, step = [_state(run.model)], run.average.on_step_end

    def remember(args, state, control, model=None, **kwargs):
        states.append(_state(model))
        step(args, state, control, model=model, **kwargs)

    run.average.on_step_end = remember
    run.train()
    assert len(states) == 10
    expected, left = _average_by_hand(states, 0.8), run.model.state_dict()
    for name in expected:
        torch.testing.assert_close(left[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_average_is_what_is_scored_and_the_network_trains_on_with_its_own_weights(trainer):
    run = trainer(*FLAGS)
    scored, own = [], []
    scores = run.compute_metrics

    def score(predicted):
        scored.append((_state(run.model), _state(run.average.network)))
        return scores(predicted)

    run.compute_metrics = score
    run.callback_handler.callbacks[-1].on_epoch_end = lambda *a, model=None, **k: own.append(_state(model))
    run.train()
    # While it is scored, each stands in the other's place.
    for (inside, outside), weights in zip(scored, own, strict=True):
        assert all(torch.equal(outside[name], weights[name]) for name in weights)
        assert not torch.equal(inside["timm_model.fc.weight"], weights["timm_model.fc.weight"])


def test_what_is_left_is_the_average_at_the_best_epoch(trainer, tmp_path):
    run = trainer(*FLAGS)
    scores = iter([0.6, 0.9, 0.7])
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}
    run.train()
    best = tmp_path / "run" / "checkpoint-6"
    assert run.kept_epoch == 2
    average, weights = load_file(best / "ema.safetensors"), load_file(best / "model.safetensors")
    left = run.model.state_dict()
    assert all(torch.equal(left[name], average[name]) for name in left)
    assert not torch.equal(left["timm_model.fc.weight"], weights["fc.weight"])


def test_standing_in_ends_with_an_error_too():
    network = torch.nn.Linear(2, 2)
    before = _state(network)
    average = WeightAverage(network, 0.9)
    average.network.weight.data.zero_()
    with pytest.raises(ZeroDivisionError), average.standing_in(network):
        assert not network.weight.any()
        raise ZeroDivisionError
    assert torch.equal(network.weight, before["weight"])


def test_going_on_with_an_average_from_a_checkpoint_without_one_is_an_error(trainer, tmp_path):
    trainer("--num_train_epochs", "1").train()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    with pytest.raises(UsageError, match="made with ema_decay 0.0, and not 0.9"):
        trainer("--num_train_epochs", "1", "--ema_decay", "0.9").train(resume_from_checkpoint=str(checkpoint))


def test_going_on_without_the_average_that_chose_the_best_epoch_is_an_error(trainer, tmp_path):
    trainer("--num_train_epochs", "1", "--ema_decay", "0.9").train()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    with pytest.raises(UsageError, match="made with ema_decay 0.9, and not 0.0"):
        trainer("--num_train_epochs", "1").train(resume_from_checkpoint=str(checkpoint))
