"""The images of one split, in batches: read from the image cache, or all of them on the GPU."""

import hashlib

import numpy as np
import torch

from hf_pneumonia.data.cohort import Cohort

# Share of a GPU's free memory that the images of one split may take: two splits leave more than half of it.
_SHARE = 0.2

_CHUNK = 1024  # images that are sent to a GPU at a time


class ImageDataset(torch.utils.data.Dataset):
    """The images of one split with their labels. A whole batch is one read: no worker processes are needed.

    100,000 images of 224 pixels are 5 GB. Where they fit on the GPU, a step sends only the numbers of its
    images there, and waits for nothing.

    Args:
        images: the splits and the image cache.
        split: name of the split.
        device: where the network is trained.

    Attributes:
        labels: (n,) int64, on the CPU.
        fingerprint: of all splits.
        vertical: the class that a swap of the proportions stretches vertically (`Cohort.vertical_class`).
        on_device: whether the images are on the GPU.
    """

    def __init__(self, cohort: Cohort, split: str, device: torch.device | str = "cpu") -> None:
        self.cache, self.rows = cohort.cache, cohort.rows(split)
        self.labels, self.fingerprint = torch.from_numpy(cohort.label[self.rows]), cohort.fingerprint()
        self.vertical = cohort.vertical_class()
        self.on_device = _fits(len(self.rows) * cohort.cache.size**2, torch.device(device))
        if self.on_device:
            self.lay_on(device)

    def lay_on(self, device: torch.device | str) -> None:
        """Send all images to a device, from which batches are taken from now on."""
        self.on_device, self._labels = True, self.labels.to(device)
        side = self.cache.size
        self._images = torch.empty((len(self), side, side), dtype=torch.uint8, device=device)
        for start in range(0, len(self), _CHUNK):
            rows = self.rows[start : start + _CHUNK]
            self._images[start : start + len(rows)] = torch.from_numpy(self.cache[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """`pixel_values` (b, size, size) uint8 and `labels` (b,) int64, by a name torch's loader knows."""
        if self.on_device:
            which = torch.tensor(indices, pin_memory=self._images.is_cuda)
            which = which.to(self._images.device, non_blocking=True)
            return {"pixel_values": self._images[which], "labels": self._labels[which]}
        images = self.cache[self.rows[np.asarray(indices)]]
        return {"pixel_values": torch.from_numpy(images), "labels": self.labels[indices]}

    def content(self) -> str:
        """Return the number of images, and a hash of their files and labels in their order."""
        digest = hashlib.sha256(self.cache.facts["sha256"][self.rows].tobytes())
        digest.update(self.labels.numpy().tobytes())
        return f"{len(self)} ({digest.hexdigest()[:16]})"


def _fits(size: int, device: torch.device) -> bool:
    return device.type == "cuda" and size <= _SHARE * torch.cuda.mem_get_info(device)[0]
