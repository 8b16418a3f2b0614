"""The Trainer: batches, losses, augmentation, schedules, phases, and the best epoch."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from trainings import changed, scored, train_noting_weights, weights

from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.training.image_dataset import ImageDataset
from hf_pneumonia.training.trainer import PneumoniaTrainer


def _seen(run) -> list[tuple[bool, torch.Tensor]]:
    """Return a list that records each input of the network and whether it is training."""
    seen = []

    def note(network, args, named) -> None:
        seen.append((network.training, args[0] if args else named["pixel_values"]))

    run.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("copied", [False, True])
def test_a_batch_has_the_images_and_labels_of_its_rows_from_the_cache_or_a_device(small_images, copied):
    images, dataset = small_images, ImageDataset(small_images, "train")
    assert not dataset.on_device  # only GPUs get a copy
    if copied:
        dataset.copy_to("cpu")
    rows = images.rows("train")
    assert dataset.on_device is copied and len(dataset) == len(rows)
    for chosen in ([3, 0, 3], np.random.default_rng(0).permutation(len(rows)).tolist()):
        batch = dataset.__getitems__(chosen)
        assert batch["pixel_values"].dtype == torch.uint8
        assert np.array_equal(batch["pixel_values"].numpy(), images.cache[rows[chosen]])
        assert batch["labels"].tolist() == images.label[rows[chosen]].tolist()


def test_neither_biases_nor_normalisation_layers_decay(trainer):
    optimizer = trainer().create_optimizer()
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] > 0 and spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
    assert len(spared["params"]) > 20


def _rates_of(run, steps: int) -> list[float]:
    """Return the learning rate of each step."""
    run.create_optimizer_and_scheduler(steps)
    rates = []
    for _ in range(steps):
        rates.append(run.lr_scheduler.get_last_lr()[0])
        run.optimizer.step()
        run.lr_scheduler.step()
    return rates


def test_the_classic_recipe_is_torchs_adam_on_every_parameter_with_a_step_schedule(trainer):
    classic = trainer(recipe="classic")
    rates = _rates_of(classic, 16 * 3)  # steps of an epoch
    assert type(classic.optimizer) is torch.optim.Adam
    (group,) = classic.optimizer.param_groups
    assert group["weight_decay"] == 1e-4 and len(group["params"]) == len(list(classic.model.parameters()))
    np.testing.assert_allclose(rates, [1e-3] * 21 + [1e-4] * 21 + [1e-5] * 6)


def test_the_final_weights_are_those_of_the_best_epoch(trainer):
    run = trainer("--num_train_epochs", "3", "--learning_rate", "1e-3", "--warmup_steps", "0")
    _, _, best, last = train_noting_weights(scored(run, 0.6, 0.9, 0.7))
    assert not changed(best, run.model.state_dict()) and "timm_model.conv1.0.weight" in changed(best, last)


def test_a_part_of_an_epoch_at_the_end_has_a_line_of_its_own(trainer, capsys):
    trainer("--max_steps", "4").train()  # 3 steps per epoch
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line[1] for line in lines] == ["1/2", "1.33/2"]


def test_the_history_has_loss_and_accuracy_of_both_splits_for_every_epoch(trainer):
    run = trainer("--num_train_epochs", "2", "--imbalance", "weights", "--metric_for_best_model", "loss")
    run.train()
    history = run.history()
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    for epoch in history:
        assert 0 <= epoch["train"]["accuracy"] <= 1 and 0 < epoch["train"]["loss"] < 5
        right = epoch["validation"]["accuracy"] * 20
        assert right == pytest.approx(round(right))
    assert min(epoch["validation"]["loss"] for epoch in history) == run.state.best_metric > 0


def test_only_training_images_are_augmented_by_the_strength_of_their_class(trainer):
    off = ("--rotation", "0", "--proportions", "0", "--shift", "0", "--zoom", "0", "--exposure", "0")
    run = trainer("--noise", "0.5", "0", *off)
    batch, seen = run.train_dataset.__getitems__([0, len(run.train_dataset) - 1]), _seen(run)
    assert batch["labels"].tolist() == [0, 1]
    for training in (True, False):
        run.compute_loss(run.model.train(training), batch)
    (_, (normal, pneumonia)), (_, validation) = seen
    expected = network_input(batch["pixel_values"])
    assert torch.equal(validation, expected)
    assert torch.equal(pneumonia, expected[1]) and not torch.allclose(normal, expected[0], atol=0.1)


STEP = ("--optim", "sgd", "--lr_scheduler_type", "constant", "--warmup_steps", "0", "--learning_rate", "0.1")
STEP += ("--weight_decay", "0", "--max_grad_norm", "0", "--max_steps", "1", "--drop_rate", "0")
STEP += ("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false")
STEP += ("--rotation", "0", "--zoom", "0", "--proportions", "0", "--shift", "0", "--exposure", "0")


def _with_fewer_normal_images(run, train=0, validation=0):
    """Return the same trainer without the first images of each split, which are normal."""
    for images, missing in ((run.train_dataset, train), (run.eval_dataset, validation)):
        images.rows, images.labels = images.rows[missing:], images.labels[missing:]
    return PneumoniaTrainer(run.model, run.args, run.train_dataset, run.eval_dataset, run.augment)


def test_a_step_with_class_weights_uses_the_weighted_images_of_all_its_batches(trainer):
    flags = ("--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2")
    flags += ("--label_smoothing_factor", "0.1", "--imbalance", "weights")
    run = _with_fewer_normal_images(trainer(*STEP, *flags), train=30)
    labels, read, batches = run.train_dataset.labels, run.train_dataset.__getitems__, []
    assert labels.bincount().tolist() == [10, 45]
    run.train_dataset.__getitems__ = lambda rows: batches.append(read(rows)) or batches[-1]
    by_hand = copy.deepcopy(run.model).train()
    run.train()

    balanced = torch.tensor(compute_class_weight("balanced", classes=np.array([0, 1]), y=labels.numpy()))
    total = 0
    for batch in batches[:2]:
        log_p = by_hand(network_input(batch["pixel_values"])).logits.log_softmax(1)
        smooth = F.one_hot(batch["labels"], 2) * 0.9 + 0.05
        total = total - (balanced[batch["labels"]] * (smooth * log_p).sum(1)).sum() / 32
    total.backward()
    for name, parameter in by_hand.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(run.model.get_parameter(name).detach(), expected, atol=1e-5, rtol=0)
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("imbalance", ["none", "weights", "sampler"])
def test_the_validation_loss_is_the_mean_over_images_or_classes(trainer, imbalance):
    run = _with_fewer_normal_images(trainer("--imbalance", imbalance), validation=6)
    run.model.timm_model.get_classifier().bias.data[1] = 1.0  # the losses of the classes differ
    batch = run.eval_dataset.__getitems__(range(14))
    with torch.no_grad():
        logits = run.model.eval()(network_input(batch["pixel_values"])).logits
    losses, labels = F.cross_entropy(logits, batch["labels"], reduction="none"), batch["labels"]
    assert labels.sum() == 10
    by_class = (losses[labels == 0].mean() + losses[labels == 1].mean()) / 2
    expected = losses.mean() if imbalance == "none" else by_class
    assert losses.mean().item() != pytest.approx(by_class.item(), rel=0.1)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_layer_decay_lowers_the_learning_rate_by_a_constant_factor_per_layer(trainer):
    run = trainer("--layer_decay", "0.5", "--learning_rate", "0.008", "--weight_decay", "0.1")
    optimizer = run.create_optimizer()
    network = run.model.timm_model
    by_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(by_parameter) == len(list(network.parameters()))
    assert by_parameter[id(network.fc.weight)]["lr"] == 0.008
    layers = (network.layer4[0].conv1, network.layer1[0].conv1, network.conv1[0])
    last, first, stem = (by_parameter[id(layer.weight)]["lr"] for layer in layers)
    assert last == 0.004 and first == last * 0.5**3 and stem < first
    assert {by_parameter[id(p)]["weight_decay"] for p in network.parameters() if p.ndim > 1} == {0.1}
    assert {by_parameter[id(p)]["weight_decay"] for p in network.parameters() if p.ndim == 1} == {0.0}
    assert optimizer.param_groups[0]["lr"] == 0.008  # the one that is logged


def test_the_plateau_scheduler_follows_the_metric_that_chooses_the_epoch(trainer):
    flags = ("--lr_scheduler_type", "reduce_lr_on_plateau", "--num_train_epochs", "4")
    flags += ("--learning_rate", "0.1", "--lr_scheduler_kwargs")
    run = trainer(*flags, '{"factor": 0.5, "patience": 0}')
    scored(run, 0.6, 0.9, 0.8, 0.95).train()  # one plateau
    assert [epoch["train"]["learning_rate"] for epoch in run.history()] == [0.1, 0.1, 0.1, 0.05]
    falling = trainer(*flags, "{}", "--metric_for_best_model", "loss")
    falling.create_optimizer()
    assert falling.create_scheduler(10).mode == "min"


def test_early_stopping_counts_epochs_across_a_resume(trainer, tmp_path):
    flags = ("--num_train_epochs", "9", "--early_stopping_epochs", "2", "--save_total_limit", "9")
    whole, resumed = trainer(*flags), trainer(*flags)
    scored(whole, 0.6, 0.9, 0.7, 0.8, 0.99).train()
    scored(resumed, 0.8, 0.99).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9"))
    for run in (whole, resumed):
        assert [epoch["epoch"] for epoch in run.history()] == [1, 2, 3, 4] and run.kept_epoch == 2


def test_a_nan_loss_stops_a_training_with_finite_weights(trainer, monkeypatch):
    """As with float16: its scaler skips every step with a NaN gradient."""
    run = trainer("--num_train_epochs", "2")
    loss = "hf_pneumonia.training.trainer.weighted_cross_entropy"
    monkeypatch.setattr(loss, lambda logits, *_: logits.sum() * float("nan"))
    run.create_optimizer().step = lambda *a, **k: None
    with pytest.raises(UsageError, match="--learning_rate: .* loss, got nan at step 3") as error:
        run.train()
    assert error.value.code == "training-diverged"


def test_a_last_batch_of_one_image_is_refused_if_batchnorm_cannot_train_on_it(trainer):
    """There are 85 images. Of 32 pixels a ResNet's last layers have one left, of 64 pixels four."""
    flags = ("--per_device_train_batch_size", "14", "--num_train_epochs", "1")
    with pytest.raises(UsageError, match="85 images in batches of 14 .*--dataloader_drop_last") as error:
        trainer(*flags)
    assert error.value.code == "last-batch-of-one"
    dropping = trainer(*flags, "--dataloader_drop_last", "true")
    assert [len(batch["labels"]) for batch in dropping.get_train_dataloader()] == 6 * [14]
    assert sum(len(batch["labels"]) for batch in dropping.get_eval_dataloader()) == 20
    trainer(*flags, "--image_size", "64")


def test_images_are_small_in_the_first_epochs_of_training_but_never_in_validation(trainer):
    flags = ("--image_size", "64", "--small_epochs", "1", "--small_size", "40", "--num_train_epochs", "2")
    run = trainer(*flags)
    seen = _seen(run)  # the cache holds images of 32 pixels
    run.train()
    assert [images.shape[-1] for training, images in seen if training] == [40] * 3 + [32] * 3
    assert {images.shape[-1] for training, images in seen if not training} >= {32}


def test_blended_images_are_trained_with_blended_labels(trainer):
    run = trainer(*STEP, "--mixup", "0.4", "--per_device_train_batch_size", "85", "--imbalance", "sampler")
    by_hand, blended, mix = copy.deepcopy(run.model).train(), [], run.mix
    run.mix = lambda images, labels: blended.append(mix(images, labels)) or blended[-1]
    run.train()
    ((images, shares),) = blended
    torch.testing.assert_close(shares.sum(1), torch.ones(85))
    assert ((shares > 0) & (shares < 1)).any()
    # Although a balanced sampler alternates the classes, half of the pairs are of one class.
    assert 20 < ((shares == 0) | (shares == 1)).any(1).sum() < 65
    loss = -(shares * by_hand(images).logits.log_softmax(1)).sum(1).mean()
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_validation_images_are_not_blended(trainer):
    run = trainer("--mixup", "0.4", "--cutmix", "1")
    run.mix = lambda *_: 1 / 0
    assert 0 <= run.evaluate()["eval_auroc"] <= 1


# A frozen phase.


TWO_PHASES = ("--frozen_epochs", "2", "--frozen_learning_rate", "0.01", "--learning_rate", "0.001")


def test_the_frozen_phase_trains_the_head_and_keeps_the_backbone_and_its_statistics(trainer):
    run = trainer(*TWO_PHASES, "--num_train_epochs", "3")
    start, _, frozen, after = train_noting_weights(run)
    assert changed(start, frozen) == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert {name for name in start if "running_" in name or name.endswith("weight")} <= changed(frozen, after)


@pytest.mark.parametrize("drop, per_epoch", [("false", 3), ("true", 2)])  # of 85 images in batches of 32
def test_the_learning_rate_is_constant_in_the_frozen_phase_then_a_warmup_and_cosine(trainer, drop, per_epoch):
    flags = ("--warmup_steps", "0.25", "--lr_scheduler_type", "cosine", "--dataloader_drop_last", drop)
    run = trainer(*TWO_PHASES, *flags)
    rates = _rates_of(run, 6 * per_epoch)
    frozen, rest = 2 * per_epoch, 4 * per_epoch
    expected = [0.01] * frozen
    warmup = math.ceil(rest * 0.25)
    for step in range(rest):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (rest - warmup)))
        expected.append(0.001 * (step / warmup if step < warmup else cosine))
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)


def test_early_stopping_ignores_the_frozen_phase(trainer):
    flags = ("--num_train_epochs", "6", "--early_stopping_epochs", "1")
    run = scored(trainer(*TWO_PHASES, *flags), 0.9, 0.8, 0.5, 0.6, 0.55)
    run.train()
    assert [epoch["epoch"] for epoch in run.history()] == [1, 2, 3, 4, 5]


# The moving average of the weights.


AVERAGED = ("--ema_decay", "0.8", "--num_train_epochs", "3", "--save_total_limit", "9")


def _average_by_hand(states, decay):
    """Average with the warm-up of timm's ModelEmaV3: 1 - (1 + step) ** (-2 / 3), at most `decay`."""
    average = copy.deepcopy(states[0])
    for step, state in enumerate(states[1:], start=1):
        keep = 0 if step == 1 else min(1 - step ** (-2 / 3), decay)
        for name, value in state.items():
            average[name] = keep * average[name] + (1 - keep) * value if value.is_floating_point() else value
    return average


def test_the_average_is_over_the_weights_after_every_step(trainer):
    run = trainer(*AVERAGED, "--load_best_model_at_end", "false", "--save_strategy", "no")
    states, step = [weights(run.model)], run.average.on_step_end

    def remember(args, state, control, model=None, **kwargs):
        states.append(weights(model))
        step(args, state, control, model=model, **kwargs)

    run.average.on_step_end = remember
    run.train()
    assert len(states) == 10
    expected, found = _average_by_hand(states, 0.8), run.model.state_dict()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_average_is_evaluated_and_kept_and_the_network_trains_on_with_its_own_weights(trainer, tmp_path):
    run = scored(trainer(*AVERAGED), 0.6, 0.9, 0.7)
    seen, own, scores = [], [], run.compute_metrics

    def note_and_score(predictions):
        seen.append((weights(run.model), weights(run.average.network)))
        return scores(predictions)

    run.compute_metrics = note_and_score
    run.callback_handler.callbacks[-1].on_epoch_end = lambda *a, model=None, **k: own.append(weights(model))
    run.train()
    # During the evaluation the two are swapped.
    for (inside, outside), trained in zip(seen, own, strict=True):
        assert not changed(outside, trained) and "timm_model.fc.weight" in changed(inside, trained)
    best = load_file(tmp_path / "run" / "checkpoint-6" / "ema.safetensors")
    assert run.kept_epoch == 2 and not changed(best, run.model.state_dict())
