"""The images of one split, in batches: read from the image cache, or all of them on the GPU."""

import hashlib

import numpy as np
import torch

from hf_pneumonia.data.filmset import FilmSet

# Share of a GPU's free memory that the images of one split may take: two splits leave more than half of it.
_SHARE = 0.2

_CHUNK = 1024  # images that are sent to a GPU at a time


class FilmDataset(torch.utils.data.Dataset):
    """The images of one split with their labels. A whole batch is one read: no worker processes are needed.

    100,000 images of 224 pixels are 5 GB. Where they fit on the GPU, a step sends only the numbers of its
    images there, and waits for nothing.

    Args:
        films: the splits and the image cache.
        split: name of the split.
        device: where the network is trained.

    Attributes:
        labels: (n,) int64, on the CPU.
        fingerprint: of all splits.
        vertical: the class that a swap of the proportions stretches vertically (`FilmSet.vertical_class`).
        on_device: whether the images are on the GPU.
    """

    def __init__(self, films: FilmSet, split: str, device: torch.device | str = "cpu") -> None:
        self.store, self.rows = films.store, films.rows(split)
        self.labels, self.fingerprint = torch.from_numpy(films.label[self.rows]), films.fingerprint()
        self.vertical = films.vertical_class()
        self.on_device = _fits(len(self.rows) * films.store.size**2, torch.device(device))
        if self.on_device:
            self.lay_on(device)

    def lay_on(self, device: torch.device | str) -> None:
        """Send all images to a device, from which batches are taken from now on."""
        self.on_device, self._labels = True, self.labels.to(device)
        side = self.store.size
        self._films = torch.empty((len(self), side, side), dtype=torch.uint8, device=device)
        for start in range(0, len(self), _CHUNK):
            rows = self.rows[start : start + _CHUNK]
            self._films[start : start + len(rows)] = torch.from_numpy(self.store[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """`pixel_values` (b, size, size) uint8 and `labels` (b,) int64, by a name torch's loader knows."""
        if self.on_device:
            which = torch.tensor(indices, pin_memory=self._films.is_cuda)
            which = which.to(self._films.device, non_blocking=True)
            return {"pixel_values": self._films[which], "labels": self._labels[which]}
        films = self.store[self.rows[np.asarray(indices)]]
        return {"pixel_values": torch.from_numpy(films), "labels": self.labels[indices]}

    def content(self) -> str:
        """Return the number of images, and a hash of their files and labels in their order."""
        digest = hashlib.sha256(self.store.facts["sha256"][self.rows].tobytes())
        digest.update(self.labels.numpy().tobytes())
        return f"{len(self)} ({digest.hexdigest()[:16]})"


def _fits(size: int, device: torch.device) -> bool:
    return device.type == "cuda" and size <= _SHARE * torch.cuda.mem_get_info(device)[0]
