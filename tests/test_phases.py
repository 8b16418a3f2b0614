import math

import numpy as np
import pytest
import torch

from hf_pneumonia.errors import UsageError

TWO_PHASES = ("--frozen_epochs", "2", "--frozen_learning_rate", "0.01", "--learning_rate", "0.001")


def _states_by_epoch(run):
    """The network's state before training and as it is scored after each epoch."""
    states = [{name: value.clone() for name, value in run.model.state_dict().items()}]
    evaluate = run.evaluate

    def evaluate_and_remember(*args, **kwargs):
        states.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return evaluate(*args, **kwargs)

    run.evaluate = evaluate_and_remember
    run.train()
    return states


def _changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_in_the_frozen_phase_the_head_learns_and_the_backbone_with_its_statistics_stays(trainer):
    run = trainer(*TWO_PHASES, "--num_train_epochs", "3")
    start, _, frozen, after = _states_by_epoch(run)
    assert _changed(start, frozen) == {"timm_model.fc.weight", "timm_model.fc.bias"}
    statistics = {name for name in start if "running_" in name}
    weights = {name for name in start if name.endswith("weight")}
    assert statistics | weights <= _changed(frozen, after)


def test_the_learning_rate_is_constant_while_frozen_and_then_warms_up_and_falls_as_a_cosine(trainer):
    flags = ("--num_train_epochs", "6", "--logging_strategy", "steps", "--logging_steps", "1")
    run = trainer(*TWO_PHASES, *flags, "--warmup_steps", "0.25", "--lr_scheduler_type", "cosine")
    run.train()
    rates = [line["learning_rate"] for line in run.state.log_history if "loss" in line]
    per_epoch = math.ceil(85 / 32)
    frozen, rest = 2 * per_epoch, 4 * per_epoch
    expected = [0.01] * frozen
    warmup = math.ceil(rest * 0.25)
    for step in range(rest):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (rest - warmup)))
        expected.append(0.001 * (step / warmup if step < warmup else cosine))
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("phase", ["frozen_epochs", "small_epochs"])
def test_a_phase_as_long_as_the_training_is_refused(trainer, phase):
    with pytest.raises(UsageError, match=f"--{phase} expects less than --num_train_epochs 2, got 2"):
        trainer(f"--{phase}", "2", "--num_train_epochs", "2", "--image_size", "224")


def test_a_training_is_not_stopped_early_for_what_the_frozen_phase_did(trainer):
    flags = ("--num_train_epochs", "6", "--early_stopping_epochs", "1")
    run, scores = trainer(*TWO_PHASES, *flags), iter([0.9, 0.8, 0.5, 0.6, 0.55])
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}
    run.train()
    assert [epoch["epoch"] for epoch in run.history()] == [1, 2, 3, 4, 5]


def test_a_training_goes_on_in_the_phase_in_which_it_was(trainer, tmp_path):
    flags = ("--num_train_epochs", "4", "--frozen_epochs", "2", "--ema_decay", "0.9", "--mixup", "0.2")
    flags += ("--save_total_limit", "9", "--image_size", "64", "--small_epochs", "3", "--small_size", "32")
    whole = trainer(*flags, "--output_dir", str(tmp_path / "whole"))
    whole.train()
    for step in (3, 6, 9):
        again = trainer(*flags, "--output_dir", str(tmp_path / f"again-{step}"))
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert not _changed(whole.model.state_dict(), again.model.state_dict())
        assert [epoch["train"] for epoch in again.history()] == [epoch["train"] for epoch in whole.history()]


def test_a_frozen_phase_before_a_plateau_is_refused(trainer):
    with pytest.raises(UsageError, match="--frozen_epochs does not go with a plateau"):
        trainer("--frozen_epochs", "1", "--lr_scheduler_type", "reduce_lr_on_plateau")
