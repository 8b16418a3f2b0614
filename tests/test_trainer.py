import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.trainer import FilmDataset, PneumoniaTrainer

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def trainer(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 32, tmp_path)
    train, validation = (FilmDataset(films, split) for split in ("train", "validation"))

    def make(*flags, recipe="quickstart"):
        flags = ("--image_size", "32", "--output_dir", str(tmp_path / "run"), "--bf16", "false", *flags)
        args, _ = parse_recipe([str(RECIPES / f"{recipe}.yaml"), *flags], default=None)
        torch.manual_seed(0)
        model = build_model("resnet10t", 32, args.drop_rate)
        return PneumoniaTrainer(model, args, train, validation, Augment(**args.augmentation))

    return make


def test_a_batch_is_read_from_the_store_with_its_labels(trainer):
    dataset = trainer().eval_dataset
    batch = dataset.__getitems__([3, 0])
    assert torch.equal(batch["pixel_values"][1], torch.from_numpy(dataset.store[dataset.rows[:1]])[0])
    assert batch["pixel_values"].dtype == torch.uint8 and batch["labels"].tolist() == [0, 0]


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


def test_the_classic_learning_rate_falls_by_ten_every_seven_epochs(trainer):
    classic = trainer("--num_train_epochs", "16", recipe="classic")
    classic.train_dataset.rows = classic.train_dataset.rows[:32]  # a step per epoch
    classic.train()
    rates = [epoch["train"]["learning_rate"] for epoch in classic.history()]
    assert np.allclose(rates[:6], 1e-3) and np.allclose(rates[7:13], 1e-4) and np.allclose(rates[14:], 1e-5)


def test_the_network_that_is_left_is_the_epoch_with_the_best_auroc_and_not_the_last(trainer):
    run = trainer("--num_train_epochs", "3", "--learning_rate", "1e-3", "--warmup_steps", "0")
    states, scores = [], iter([0.6, 0.9, 0.7])
    run.compute_metrics = lambda _: {"auroc": next(scores), "accuracy": 0.5}
    evaluate = run.evaluate

    def evaluate_and_remember(*args, **kwargs):
        states.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return evaluate(*args, **kwargs)

    run.evaluate = evaluate_and_remember
    run.train()
    kept = run.model.state_dict()
    assert all(torch.equal(kept[name], states[1][name]) for name in kept)
    assert not torch.equal(kept["timm_model.conv1.0.weight"], states[2]["timm_model.conv1.0.weight"])


def test_a_checkpoint_holds_no_pickled_arguments(trainer, tmp_path):
    trainer("--num_train_epochs", "1").train()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    names = {path.name for path in checkpoint.iterdir()}
    assert "model.safetensors" in names and "training_args.bin" not in names


def test_the_history_has_loss_and_accuracy_of_both_splits_for_every_epoch(trainer):
    run = trainer("--num_train_epochs", "2")
    run.train()
    history = run.history()
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    for epoch in history:
        assert 0 <= epoch["train"]["accuracy"] <= 1 and epoch["train"]["loss"] > 0
        right = epoch["validation"]["accuracy"] * 20
        assert right == pytest.approx(round(right)) and epoch["validation"]["loss"] > 0


def test_only_training_films_are_augmented(trainer):
    run = trainer("--noise", "0.5")
    batch = run.eval_dataset.__getitems__([0, 1])
    run.model.eval()
    assert torch.equal(run._prepare_inputs(batch)["pixel_values"], run._prepare_inputs(batch)["pixel_values"])
    run.model.train()
    assert not torch.equal(
        run._prepare_inputs(batch)["pixel_values"], run._prepare_inputs(batch)["pixel_values"]
    )


def test_each_training_film_is_augmented_as_its_class_wants(trainer):
    run = trainer("--noise", "0.5", "0", "--rotation", "0", "--shift", "0", "--zoom", "0", "--exposure", "0")
    run.model.train()
    batch = run.train_dataset.__getitems__([0, len(run.train_dataset) - 1])
    assert batch["labels"].tolist() == [0, 1]
    normal, pneumonia = run._prepare_inputs(batch)["pixel_values"]
    expected = network_input(batch["pixel_values"])
    assert torch.equal(pneumonia, expected[1]) and not torch.allclose(normal, expected[0], atol=0.1)


STEP = ("--optim", "sgd", "--lr_scheduler_type", "constant", "--warmup_steps", "0", "--learning_rate", "0.1")
STEP += ("--weight_decay", "0", "--max_grad_norm", "0", "--max_steps", "1", "--drop_rate", "0")
STEP += ("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false")
STEP += ("--rotation", "0", "--zoom", "0", "--shift", "0", "--exposure", "0")


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


@pytest.mark.parametrize("imbalance", ["weights", "sampler"])
def test_a_run_against_imbalance_has_a_history_as_every_run(trainer, imbalance):
    run = trainer("--num_train_epochs", "1", "--imbalance", imbalance, "--metric_for_best_model", "loss")
    run.train()
    (epoch,) = run.history()
    assert 0 < epoch["train"]["loss"] < 5 and 0 <= epoch["train"]["accuracy"] <= 1
    assert epoch["validation"]["loss"] == run.state.best_metric
