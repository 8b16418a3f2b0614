"""Class imbalance: the balanced sampler and the class weights. For two processes see test_processes.py."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_pneumonia.training.trainer import BalancedSampler, class_weights, weighted_cross_entropy


def _draw(labels: list[int], seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = BalancedSampler(torch.tensor(labels), seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_smaller_class_is_oversampled_and_the_larger_one_undersampled():
    labels = [1, 1, 0, 1, 1, 1, 0, 1, 1]  # of nine draws five are PNEUMONIA and four NORMAL
    times = Counter(_draw(labels))
    assert times[2] == times[6] == 2
    assert sorted(times[row] for row in times if labels[row] == 1) == [1] * 5


@pytest.mark.parametrize("labels", [[0] * 3 + [1] * 30, [1] * 7 + [0] * 30, [0, 1] * 5, [0, 1, 1]])
def test_every_beginning_of_the_order_is_balanced(labels):
    drawn = np.array(labels)[_draw(labels)]
    assert len(drawn) == len(labels) == len(BalancedSampler(torch.tensor(labels), 0))
    assert np.abs(np.cumsum(2 * drawn - 1)).max() == 1
    assert sorted(_draw([0, 1] * 5)) == list(range(10))  # balanced classes: each image once


def test_the_order_depends_on_seed_and_epoch_only():
    labels = [0] * 10 + [1] * 30
    orders = [_draw(labels, seed, epoch) for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]]
    assert len(set(map(tuple, orders))) == 4
    torch.manual_seed(7)
    assert _draw(labels, 1, 1) == orders[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_equals_the_loss_of_a_balanced_set(smoothing):
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    again = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7])
    expected = F.cross_entropy(logits[again], labels[again], label_smoothing=smoothing)
    found = weighted_cross_entropy(logits, labels, class_weights(labels), smoothing)
    torch.testing.assert_close(found, expected)
