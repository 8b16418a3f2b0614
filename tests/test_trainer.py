from pathlib import Path

import numpy as np
import pytest
import torch

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
