"""Classes of unequal size: images drawn in equal numbers, or weights in the loss.

Both train the network for a population with as many positive as negative patients: its logit of pneumonia is
log(pneumonias / normals) of the training split below what it would be without. AUROC does not change, and
`calibrate` shifts the probabilities back, by an intercept fitted to validation. The metrics of each epoch are
computed before that.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

IMBALANCE = ("none", "weights", "sampler")


class BalancedSampler(torch.utils.data.Sampler[int]):
    """As many images as there are, half of each class (one more of the larger where the number is odd).

    Of the larger class a new part is drawn each epoch, without repetition; the smaller is repeated whole, so
    that its images are drawn equally often, or once more. The two classes alternate: every batch is half and
    half, and so are the images that Accelerate repeats to fill the last batches.

    The order follows from seed and epoch alone. It is the same in every process, and Accelerate hands each
    its own batches of it.

    Args:
        labels: (n,) int64, 0 or 1, both present.
        seed: of the order; 0 or more.
    """

    def __init__(self, labels: torch.Tensor, seed: int) -> None:
        classes = [np.flatnonzero(labels.numpy() == label) for label in (0, 1)]
        self.smaller, self.larger = sorted(classes, key=len)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.smaller) + len(self.larger)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.empty(len(self), dtype=np.int64)
        for places, images in ((order[0::2], self.larger), (order[1::2], self.smaller)):
            rounds = -(-len(places) // len(images))
            places[:] = np.concatenate([rng.permutation(images) for _ in range(rounds)])[: len(places)]
        return iter(order.tolist())


def class_weights(labels: torch.Tensor) -> torch.Tensor:
    """(n,) int64 labels -> (2,) float32 n / (2 n_class): over these images the weights average to 1."""
    return len(labels) / (2 * torch.bincount(labels, minlength=2))


def weighted_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross entropy with each image weighted by its class.

    It is divided by the number of images, and not by the sum of their weights as torch's own: that sum
    differs from batch to batch, and the mean over batches or processes would not be that over their images.

    Args:
        logits: (b, 2) float.
        labels: (b,) int64, or (b, 2) float shares of the classes in a blended image.
        weights: (2,) float32, of each class.
        label_smoothing: share of a label spread over both classes, 0 to 1.

    Returns:
        Scalar float.
    """
    shares = F.one_hot(labels, logits.shape[1]).float() if labels.ndim == 1 else labels
    weighted = shares * weights
    spread = weighted.sum(1, keepdim=True) / logits.shape[1]
    target = (1 - label_smoothing) * weighted + label_smoothing * spread
    return -(target * logits.log_softmax(1)).sum(1).mean()
