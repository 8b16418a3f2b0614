"""Classes of unequal size: the sampler and the weights alone, and in two processes that train."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TORCHRUN, write_films
from sklearn.utils.class_weight import compute_class_weight

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.training.imbalance import BalancedSampler, class_weights, weighted_cross_entropy

# 96 rows, which batches of 8 fill in one process and in two.
NORMAL, PNEUMONIA = 20, 76

# Trains two epochs with each sampler, then goes on from a checkpoint within the second, and writes which rows
# each process was given.
RECORDER = """
import json, os, sys
from pathlib import Path

from accelerate.utils import set_seed
from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.film_dataset import FilmDataset
from hf_pneumonia.training.trainer import PneumoniaTrainer

folder, recipe = map(Path, sys.argv[1:])
films = prepare_films(str(folder / "films"), 32, folder / "cache")
after = 96 // 8 // int(os.environ["WORLD_SIZE"]) + 2  # two steps into the second epoch

class Recorded(FilmDataset):
    def __getitems__(self, indices):
        batches.append([int(index) for index in indices])
        return super().__getitems__(indices)

def train(imbalance, checkpoint=None):
    flags = ["--imbalance", imbalance, "--output_dir", str(folder / imbalance), "--save_steps", str(after)]
    args, _ = parse_recipe([str(recipe), *flags], default=None)
    set_seed(args.seed)
    splits = Recorded(films, "train"), FilmDataset(films, "validation")
    trainer = PneumoniaTrainer(build_model("resnet10t", 32), args, *splits, Augment())
    set_seed(args.seed, device_specific=True)
    batches.clear()
    trainer.train(resume_from_checkpoint=checkpoint)
    return list(batches), splits[0].labels.tolist(), args.process_index

for imbalance in ("none", "sampler"):
    batches = []
    whole, labels, process = train(imbalance)
    rest, _, _ = train(imbalance, str(folder / imbalance / f"checkpoint-{after}"))
    found = {"epochs": [whole[: len(whole) // 2], whole[len(whole) // 2 :]], "rest": rest, "labels": labels}
    (folder / f"{imbalance}-{process}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """imbalance -> what each process saw: its batches by epoch, those after going on, and all labels."""
    folder = tmp_path_factory.mktemp("recorded")
    write_films(folder / "films" / "train", NORMAL, PNEUMONIA)
    write_films(folder / "films" / "val", 10, 10, first=100)
    write_films(folder / "films" / "test", 2, 2, first=200)
    prepare_films(str(folder / "films"), 32, folder / "cache")  # so that no process waits for another
    (folder / "recorder.py").write_text(RECORDER)
    (folder / "recipe.yaml").write_text(
        "image_size: 32\nbf16: false\nnum_train_epochs: 2\nper_device_train_batch_size: 8\n"
        "save_strategy: steps\nsave_total_limit: 2\neval_strategy: 'no'\nload_best_model_at_end: false\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [folder / "recorder.py", folder, folder / "recipe.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, *map(str, script)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        name: [json.loads((folder / f"{name}-{i}.json").read_text()) for i in range(2)]
        for name in ("none", "sampler")
    }


def _epoch(processes: list[dict], epoch: int) -> list[int]:
    """Rows that all processes were given in an epoch."""
    return [row for process in processes for batch in process["epochs"][epoch] for row in batch]


def test_without_a_sampler_every_film_is_seen_once_an_epoch_by_one_process(recorded):
    for epoch in (0, 1):
        assert sorted(_epoch(recorded["none"], epoch)) == list(range(NORMAL + PNEUMONIA))


def test_in_training_each_epoch_has_as_many_films_of_each_class_and_repeats_only_the_smaller(recorded):
    labels = recorded["sampler"][0]["labels"]
    for epoch in (0, 1):
        rows = _epoch(recorded["sampler"], epoch)
        assert Counter(labels[row] for row in rows) == {0: 48, 1: 48}
        times = Counter(rows)
        # 48 films of 20 normal ones: eight of them three times, the others twice.
        assert sorted(times[row] for row in times if labels[row] == 0) == [2] * 12 + [3] * 8
        assert [times[row] for row in times if labels[row] == 1] == [1] * 48


def test_in_training_every_batch_of_every_process_is_half_and_half(recorded):
    for process in recorded["sampler"]:
        for batch in sum(process["epochs"], []):
            assert sum(process["labels"][row] for row in batch) == 4 and len(batch) == 8


def test_a_run_that_goes_on_within_an_epoch_is_given_what_was_left_of_it(recorded):
    for name in ("none", "sampler"):
        for process in recorded[name]:
            assert process["rest"] == process["epochs"][1][2:] and process["rest"]
            assert process["epochs"][0] != process["epochs"][1]


def _draw(labels: list[int], seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = BalancedSampler(torch.tensor(labels), seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_smaller_class_is_repeated_and_of_the_larger_a_part_is_drawn():
    labels = [1, 1, 0, 1, 1, 1, 0, 1, 1]  # nine films: five of the larger class, four of the two normal ones
    times = Counter(_draw(labels))
    assert times[2] == times[6] == 2
    assert sorted(times[row] for row in times if labels[row] == 1) == [1] * 5


@pytest.mark.parametrize("labels", [[0] * 3 + [1] * 30, [1] * 7 + [0] * 30, [0, 1] * 5, [0, 1, 1]])
def test_any_part_of_the_order_from_its_start_is_balanced(labels):
    drawn = np.array(labels)[_draw(labels)]
    assert len(drawn) == len(labels) == len(BalancedSampler(torch.tensor(labels), 0))
    assert np.abs(np.cumsum(2 * drawn - 1)).max() == 1


def test_classes_of_equal_size_are_each_drawn_once():
    assert sorted(_draw([0, 1] * 5)) == list(range(10))


def test_the_order_follows_from_seed_and_epoch():
    labels = [0] * 10 + [1] * 30
    orders = [_draw(labels, seed, epoch) for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]]
    assert len(set(map(tuple, orders))) == 4
    torch.manual_seed(7)
    assert _draw(labels, 1, 1) == orders[1]


def test_the_weights_are_sklearns():
    labels = [0] * 7 + [1] * 25
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    np.testing.assert_allclose(class_weights(torch.tensor(labels)), expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_that_of_films_repeated_until_the_classes_are_equal(smoothing):
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    again = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7])
    expected = F.cross_entropy(logits[again], labels[again], label_smoothing=smoothing)
    found = weighted_cross_entropy(logits, labels, class_weights(labels), smoothing)
    torch.testing.assert_close(found, expected)


def test_the_mean_of_the_weighted_losses_of_two_batches_is_that_of_all_their_films():
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0])  # the first batch has one class, the second three to one
    weights = class_weights(labels)
    halves = [weighted_cross_entropy(logits[part], labels[part], weights) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, weighted_cross_entropy(logits, labels, weights))
