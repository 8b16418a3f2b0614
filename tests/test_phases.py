"""Phases of a training: a frozen backbone, small images, and the schedule around them."""

import math

import numpy as np
from test_trainer import rates_of
from trainings import changed, scored, train_noting_weights

TWO_PHASES = ("--frozen_epochs", "2", "--frozen_learning_rate", "0.01", "--learning_rate", "0.001")


def test_in_the_frozen_phase_the_head_learns_and_the_backbone_with_its_statistics_stays(trainer):
    run = trainer(*TWO_PHASES, "--num_train_epochs", "3")
    start, _, frozen, after = train_noting_weights(run)
    assert changed(start, frozen) == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert {name for name in start if "running_" in name or name.endswith("weight")} <= changed(frozen, after)


def test_the_learning_rate_is_constant_while_frozen_and_then_warms_up_and_falls_as_a_cosine(trainer):
    run = trainer(*TWO_PHASES, "--warmup_steps", "0.25", "--lr_scheduler_type", "cosine")
    per_epoch = math.ceil(85 / 32)
    rates = rates_of(run, 6 * per_epoch)
    frozen, rest = 2 * per_epoch, 4 * per_epoch
    expected = [0.01] * frozen
    warmup = math.ceil(rest * 0.25)
    for step in range(rest):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (rest - warmup)))
        expected.append(0.001 * (step / warmup if step < warmup else cosine))
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)


def test_a_training_is_not_stopped_early_for_what_the_frozen_phase_did(trainer):
    flags = ("--num_train_epochs", "6", "--early_stopping_epochs", "1")
    run = scored(trainer(*TWO_PHASES, *flags), 0.9, 0.8, 0.5, 0.6, 0.55)
    run.train()
    assert [epoch["epoch"] for epoch in run.history()] == [1, 2, 3, 4, 5]


def test_a_training_goes_on_in_the_phase_in_which_it_was(trainer, tmp_path):
    flags = ("--num_train_epochs", "3", "--frozen_epochs", "1", "--ema_decay", "0.9", "--mixup", "0.2")
    flags += ("--save_total_limit", "9", "--image_size", "64", "--small_epochs", "2", "--small_size", "32")
    whole = trainer(*flags, "--output_dir", str(tmp_path / "whole"))
    whole.train()
    for step in (3, 6):
        again = trainer(*flags, "--output_dir", str(tmp_path / f"again-{step}"))
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert not changed(whole.model.state_dict(), again.model.state_dict())
        assert [epoch["train"] for epoch in again.history()] == [epoch["train"] for epoch in whole.history()]
