"""The Trainer: steps, losses, augmentation, schedules, and the epoch that is kept."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from trainings import changed, scored, train_noting_weights

from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.training.trainer import PneumoniaTrainer


def _seen(run) -> list[tuple[bool, torch.Tensor]]:
    """What the network will have been given: whether in training, and the images."""
    seen = []

    def note(network, args, named) -> None:
        seen.append((network.training, args[0] if args else named["pixel_values"]))

    run.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_neither_biases_nor_normalisation_layers_decay(trainer):
    optimizer = trainer().create_optimizer()
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] > 0 and spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
    assert len(spared["params"]) > 20


def test_the_classic_recipe_is_torchs_adam_on_every_parameter(trainer):
    classic = trainer(recipe="classic")
    optimizer = classic.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-4)
    assert len(group["params"]) == len(list(classic.model.parameters()))


def rates_of(run, steps: int) -> list[float]:
    """The learning rate of each step."""
    run.create_optimizer_and_scheduler(steps)
    rates = []
    for _ in range(steps):
        rates.append(run.lr_scheduler.get_last_lr()[0])
        run.optimizer.step()
        run.lr_scheduler.step()
    return rates


def test_the_classic_learning_rate_falls_by_ten_every_seven_epochs(trainer):
    rates = rates_of(trainer(recipe="classic"), 16 * 3)  # steps of an epoch
    np.testing.assert_allclose(rates, [1e-3] * 21 + [1e-4] * 21 + [1e-5] * 6)


def test_the_network_that_is_left_is_the_epoch_with_the_best_auroc_and_not_the_last(trainer):
    run = trainer("--num_train_epochs", "3", "--learning_rate", "1e-3", "--warmup_steps", "0")
    _, _, best, last = train_noting_weights(scored(run, 0.6, 0.9, 0.7))
    assert not changed(best, run.model.state_dict()) and "timm_model.conv1.0.weight" in changed(best, last)


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


def test_only_training_films_are_augmented_each_as_its_class_wants(trainer):
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


def _with_fewer_normal_films(run, train=0, validation=0):
    """The same trainer where so many of the normal films, which come first, are missing."""
    for films, missing in ((run.train_dataset, train), (run.eval_dataset, validation)):
        films.rows, films.labels = films.rows[missing:], films.labels[missing:]
    return PneumoniaTrainer(run.model, run.args, run.train_dataset, run.eval_dataset, run.augment)


def test_a_step_with_weights_is_that_of_the_weighted_films_of_all_its_batches(trainer):
    flags = ("--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2")
    flags += ("--label_smoothing_factor", "0.1", "--imbalance", "weights")
    run = _with_fewer_normal_films(trainer(*STEP, *flags), train=30)
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
def test_the_validation_loss_is_the_mean_over_films_or_over_classes(trainer, imbalance):
    run = _with_fewer_normal_films(trainer("--imbalance", imbalance), validation=6)
    run.model.timm_model.get_classifier().bias.data[1] = 1.0  # so that the classes' losses differ
    batch = run.eval_dataset.__getitems__(range(14))
    with torch.no_grad():
        logits = run.model.eval()(network_input(batch["pixel_values"])).logits
    losses, labels = F.cross_entropy(logits, batch["labels"], reduction="none"), batch["labels"]
    assert labels.sum() == 10
    by_class = (losses[labels == 0].mean() + losses[labels == 1].mean()) / 2
    expected = losses.mean() if imbalance == "none" else by_class
    assert losses.mean().item() != pytest.approx(by_class.item(), rel=0.1)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_layers_further_from_the_head_learn_more_slowly_by_a_constant_factor(trainer):
    run = trainer("--layer_decay", "0.5", "--learning_rate", "0.008", "--weight_decay", "0.1")
    optimizer = run.create_optimizer()
    network = run.model.timm_model
    by_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(by_parameter) == len(list(network.parameters()))
    assert by_parameter[id(network.fc.weight)]["lr"] == 0.008
    last, first = (
        by_parameter[id(block.conv1.weight)]["lr"] for block in (network.layer4[0], network.layer1[0])
    )
    assert (
        last == 0.004 and first == last * 0.5**3 and by_parameter[id(network.conv1[0].weight)]["lr"] < first
    )
    assert {by_parameter[id(p)]["weight_decay"] for p in network.parameters() if p.ndim > 1} == {0.1}
    assert {by_parameter[id(p)]["weight_decay"] for p in network.parameters() if p.ndim == 1} == {0.0}
    assert optimizer.param_groups[0]["lr"] == 0.008  # the first is logged


def test_a_plateau_is_one_of_the_figure_that_chooses_the_epoch(trainer):
    flags = ("--lr_scheduler_type", "reduce_lr_on_plateau", "--num_train_epochs", "4")
    flags += ("--learning_rate", "0.1", "--lr_scheduler_kwargs")
    run = trainer(*flags, '{"factor": 0.5, "patience": 0}')
    scored(run, 0.6, 0.9, 0.8, 0.95).train()  # falls once
    assert [epoch["train"]["learning_rate"] for epoch in run.history()] == [0.1, 0.1, 0.1, 0.05]
    falling = trainer(*flags, "{}", "--metric_for_best_model", "loss")
    falling.create_optimizer()
    assert falling.create_scheduler(10).mode == "min"
    wrong = trainer(*flags, '{"foo": 3}')
    wrong.create_optimizer()
    with pytest.raises(UsageError, match="--lr_scheduler_kwargs.*'foo'"):
        wrong.create_scheduler(10)


def test_a_training_stops_when_so_many_epochs_were_not_the_best_before_or_after_a_resume(trainer, tmp_path):
    flags = ("--num_train_epochs", "9", "--early_stopping_epochs", "2", "--save_total_limit", "9")
    whole, resumed = trainer(*flags), trainer(*flags)
    scored(whole, 0.6, 0.9, 0.7, 0.8, 0.99).train()
    scored(resumed, 0.8, 0.99).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9"))
    for run in (whole, resumed):
        assert [epoch["epoch"] for epoch in run.history()] == [1, 2, 3, 4] and run.kept_epoch == 2


def test_scores_before_the_first_step_are_those_of_the_first_start_and_none_of_the_next(trainer, tmp_path):
    flags = ("--num_train_epochs", "2", "--eval_on_start", "true", "--save_total_limit", "9")
    whole = trainer(*flags)
    whole.train()
    again = trainer(*flags)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))

    def scored(run):
        return [line["step"] for line in run.state.log_history if "eval_loss" in line]

    assert scored(again) == scored(whole) == [0, 3, 6]


def test_a_loss_that_is_no_number_stops_a_training_whose_weights_stay_numbers(trainer, monkeypatch):
    """As with float16, whose scaler passes over every step of which a gradient is no number."""
    run = trainer("--num_train_epochs", "2")
    loss = "hf_pneumonia.training.trainer.weighted_cross_entropy"
    monkeypatch.setattr(loss, lambda logits, *_: logits.sum() * float("nan"))
    run.create_optimizer().step = lambda *a, **k: None
    with pytest.raises(UsageError, match="diverged: the loss up to step 3 .* --learning_rate"):
        run.train()


def test_a_last_batch_of_one_film_is_refused_before_the_training_where_it_would_end_it(trainer):
    """85 films; of 32 pixels a ResNet's last layers have one left, of 64 pixels four."""
    flags = ("--per_device_train_batch_size", "14", "--num_train_epochs", "1")
    with pytest.raises(
        UsageError, match="85 films in batches of 14 is one film.*--dataloader_drop_last true"
    ):
        trainer(*flags)
    dropping = trainer(*flags, "--dataloader_drop_last", "true")
    assert [len(batch["labels"]) for batch in dropping.get_train_dataloader()] == 6 * [14]
    assert sum(len(batch["labels"]) for batch in dropping.get_eval_dataloader()) == 20
    trainer(*flags, "--image_size", "64")
    # It is so: torch itself refuses it in the middle of the training.
    run = trainer(*flags, "--dataloader_drop_last", "true")
    run.args.dataloader_drop_last = False
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        run.train()


def test_films_are_small_for_the_first_epochs_of_training_and_never_in_validation(trainer):
    flags = ("--image_size", "64", "--small_epochs", "1", "--small_size", "40", "--num_train_epochs", "2")
    run = trainer(*flags)
    seen = _seen(run)  # the store holds films of 32 pixels
    run.train()
    assert [images.shape[-1] for training, images in seen if training] == [40] * 3 + [32] * 3
    assert {images.shape[-1] for training, images in seen if not training} >= {32}


def test_blended_films_are_trained_with_blended_labels(trainer):
    run = trainer(*STEP, "--mixup", "0.4", "--per_device_train_batch_size", "85", "--imbalance", "sampler")
    by_hand, blended, mix = copy.deepcopy(run.model).train(), [], run.mix
    run.mix = lambda films, labels: blended.append(mix(films, labels)) or blended[-1]
    run.train()
    ((films, shares),) = blended
    torch.testing.assert_close(shares.sum(1), torch.ones(85))
    assert ((shares > 0) & (shares < 1)).any()
    # Films of a balanced sampler alternate, and half of the pairs are of one class all the same.
    assert 20 < ((shares == 0) | (shares == 1)).any(1).sum() < 65
    loss = -(shares * by_hand(films).logits.log_softmax(1)).sum(1).mean()
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_validation_films_are_not_blended(trainer):
    run = trainer("--mixup", "0.4", "--cutmix", "1")
    run.mix = lambda *_: 1 / 0
    assert 0 <= run.evaluate()["eval_auroc"] <= 1
