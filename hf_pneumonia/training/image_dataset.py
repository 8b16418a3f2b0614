"""Dataset of one split, read in batches from the image cache or from GPU memory."""

import hashlib

import numpy as np
import torch

from hf_pneumonia.data.cohort import Cohort

# Largest share of a GPU's free memory for the images of one split; there are two splits.
_SHARE = 0.2

_CHUNK = 1024  # images copied to the GPU at once


class ImageDataset(torch.utils.data.Dataset):
    """Images and labels of one split. A batch is one read, so no worker processes are needed.

    If the images fit into GPU memory (100,000 images of 224 pixels are 5 GB), they are kept there, and a step
    sends only their indices.

    Args:
        cohort: the splits and the image cache.
        split: name of the split.
        device: device of the network.

    Attributes:
        labels: (n,) int64, on the CPU.
        fingerprint: hash of all splits.
        vertical: class that a swap of the proportions stretches vertically (`Cohort.vertical_class`).
        on_device: whether the images are on the GPU.
    """

    def __init__(self, cohort: Cohort, split: str, device: torch.device | str = "cpu") -> None:
        self.cache, self.rows = cohort.cache, cohort.rows(split)
        self.labels, self.fingerprint = torch.from_numpy(cohort.label[self.rows]), cohort.fingerprint()
        self.vertical = cohort.vertical_class()
        self.on_device = _fits(len(self.rows) * cohort.cache.size**2, torch.device(device))
        if self.on_device:
            self.copy_to(device)

    def copy_to(self, device: torch.device | str) -> None:
        """Copy all images to a device and read batches from there."""
        self.on_device, self._labels = True, self.labels.to(device)
        side = self.cache.size
        self._images = torch.empty((len(self), side, side), dtype=torch.uint8, device=device)
        for start in range(0, len(self), _CHUNK):
            rows = self.rows[start : start + _CHUNK]
            self._images[start : start + len(rows)] = torch.from_numpy(self.cache[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (b, size, size) uint8 and `labels` (b,) int64; DataLoader's batched read."""
        if self.on_device:
            chosen = torch.tensor(indices, pin_memory=self._images.is_cuda)
            chosen = chosen.to(self._images.device, non_blocking=True)
            return {"pixel_values": self._images[chosen], "labels": self._labels[chosen]}
        images = self.cache[self.rows[np.asarray(indices)]]
        return {"pixel_values": torch.from_numpy(images), "labels": self.labels[indices]}

    def content(self) -> str:
        """Return the number of images and a hash of their files and labels, in order."""
        digest = hashlib.sha256(self.cache.facts["sha256"][self.rows].tobytes())
        digest.update(self.labels.numpy().tobytes())
        return f"{len(self)} ({digest.hexdigest()[:16]})"


def _fits(size: int, device: torch.device) -> bool:
    return device.type == "cuda" and size <= _SHARE * torch.cuda.mem_get_info(device)[0]
