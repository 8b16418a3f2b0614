"""Batched augmentation of gray images on the device, before normalisation."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from hf_pneumonia.data.labels import LABELS

# One strength for all images, or one each for NORMAL and PNEUMONIA.
Strength = float | Sequence[float]
# Number of sizes that `resolution` draws from, evenly spaced.
_SIDES = 16
# The strength for all images of a batch, or (b,) float32.
Limit: TypeAlias = float | torch.Tensor


def _strength(text: str):
    """Return the field of a strength, off by default."""
    text = f"Largest random {text}; 0: off. Two numbers: NORMAL, PNEUMONIA."
    return field(default_factory=lambda: [0.0], metadata={"help": text})


@dataclass
class Strengths:
    """Augmentation strengths: the arguments of `Augment`, and fields of a recipe.

    A strength is one number for all images, or two, for NORMAL and PNEUMONIA, to vary the smaller class more.
    A variation of only one class is a shortcut to its label, which the training loss does not show: keep both
    strengths within the natural variation of both classes.
    """

    rotation: list[float] = _strength("rotation to either side, in degrees")
    zoom: list[float] = _strength("change of scale, independently per axis (0.1: 10%%)")
    # Around the centre, with constant area. Squashing files to squares leaves a trace of their proportions;
    # if these differ by class, a network learns them.
    proportions: list[float] = _strength(
        "change of log(width / height) (0.35: 0.7 to 1.4 times the aspect ratio)"
    )
    shift: list[float] = _strength("shift, as a share of the side")
    resolution: list[float] = _strength("loss of resolution, as a share of the side, independently per axis")
    blur: list[float] = _strength("Gaussian blur, sigma in pixels")
    # Also changes the brightness, by up to half of this, as a share of the full range.
    exposure: list[float] = _strength("change of log(gamma) and log(contrast)")
    noise: list[float] = _strength("noise, sigma as a share of the gray range")
    # Off by default: it mirrors the heart and the side marker, and hardly any real image is mirrored.
    horizontal_flip: float = field(
        default=0.0,
        metadata={
            "help": "Probability of a horizontal flip, which mirrors the heart and the side marker; 0: off."
        },
    )


# Largest valid strengths; the smallest is 0.
MAX_STRENGTHS = {
    "rotation": 180, "zoom": 0.9, "proportions": 2, "shift": 1, "resolution": 0.9, "blur": 20, "exposure": 5,
    "noise": 1, "horizontal_flip": 1,
}  # fmt: skip
AUGMENTATIONS = tuple(MAX_STRENGTHS)


class Augment(nn.Module):
    """Random augmentation, drawn for each image of a batch independently.

    The order is resolution, one warp (rotation, zoom, proportions, shift and flip in a single resampling),
    blur, exposure, noise. Random numbers come from torch's global generator of the images' device, which a
    checkpoint saves.

    Args:
        strengths: fields of `Strengths`; the others are off.
    """

    def __init__(self, **strengths: Strength) -> None:
        super().__init__()
        values = Strengths(**strengths)  # type: ignore[arg-type]  # fields have the types of flags
        self.horizontal_flip = values.horizontal_flip
        for name in set(AUGMENTATIONS) - {"horizontal_flip"}:
            setattr(self, name, _pair(getattr(values, name)))

    @torch.no_grad()
    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Augment a batch. The input is not modified.

        Args:
            images: (b, h, w) uint8.
            labels: (b,) int64, 0 or 1, on the images' device; needed only if a strength differs by class.

        Returns:
            (b, h, w) float32 in [0, 1]. A step with strength 0 for a class leaves its images unchanged.

        Raises:
            ValueError: a strength differs by class, and there are no labels.
        """
        images = self._step(self._reduce, self.resolution, images.float().div(255), labels)
        warp = (self.rotation, self.zoom, self.proportions, self.shift)
        if any(map(any, warp)) or self.horizontal_flip:
            limits = [_of_class(strength, labels) for strength in warp]
            images = _where(sum(limits) + self.horizontal_flip, self._warp(images, *limits), images)
        images = self._step(self._blur, self.blur, images, labels)
        images = self._step(self._expose, self.exposure, images, labels)
        if any(self.noise):
            deviation = torch.rand(len(images), device=images.device) * _of_class(self.noise, labels)
            images = images + deviation.view(-1, 1, 1) * torch.randn_like(images)
        return images.clamp_(0, 1)

    def _step(
        self, vary: Callable, pair: tuple[float, float], images: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        if not any(pair):
            return images
        limit = _of_class(pair, labels)
        return _where(limit, vary(images, limit), images)

    def _reduce(self, images: torch.Tensor, resolution: Limit) -> torch.Tensor:
        b, h, w = images.shape
        largest = max(self.resolution)
        steps = torch.rand(2, b, device=images.device) * (resolution / largest) * _SIDES
        down, across = (
            _reductions(side, largest, images.device)[step]
            for side, step in zip((h, w), steps.long().clamp_(max=_SIDES - 1), strict=True)
        )
        return down @ images @ across.mT

    def _warp(
        self, images: torch.Tensor, rotation: Limit, zoom: Limit, proportions: Limit, shift: Limit
    ) -> torch.Tensor:
        b, h, w = images.shape
        angle = _uniform(images, rotation * (math.pi / 180))
        wider = torch.exp(_uniform(images, proportions) / 2)
        scale_x, scale_y = (1 + _uniform(images, zoom)) * wider, (1 + _uniform(images, zoom)) / wider
        flip = torch.where(torch.rand(b, device=images.device) < self.horizontal_flip, -1.0, 1.0)
        # Rows of the inverse map in grid_sample's coordinates, from -1 to 1: a shift by a share s of the side
        # is 2 s.
        cos, sin = torch.cos(angle), torch.sin(angle)
        across = torch.stack([flip * cos / scale_x, -sin / scale_x, 2 * _uniform(images, shift)], 1)
        down = torch.stack([flip * sin / scale_y, cos / scale_y, 2 * _uniform(images, shift)], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), [b, 1, h, w], align_corners=False)
        # Black outside, like the area outside the collimator.
        return F.grid_sample(images.unsqueeze(1), grid, "bilinear", "zeros", align_corners=False).squeeze(1)

    def _blur(self, images: torch.Tensor, blur: Limit) -> torch.Tensor:
        """Apply a separable Gaussian of a width per image: a grouped convolution, one image per group."""
        b, h, w = images.shape
        reach = min(math.ceil(3 * max(self.blur)), min(h, w) - 1)
        sigma = (torch.rand(b, device=images.device) * blur).clamp_min(1e-3).unsqueeze(1)
        offsets = torch.arange(-reach, reach + 1, device=images.device)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).unsqueeze(1)
        padded = F.pad(images.unsqueeze(0), [reach] * 4, mode="reflect")
        across = F.conv2d(padded, kernel.unsqueeze(2), groups=b)
        return F.conv2d(across, kernel.unsqueeze(3), groups=b).squeeze(0)

    def _expose(self, images: torch.Tensor, exposure: Limit) -> torch.Tensor:
        gamma, contrast, brightness = (_uniform(images, exposure).view(-1, 1, 1) for _ in range(3))
        images = images.clamp(1e-4, 1).pow(torch.exp(gamma))
        mean = images.mean(dim=(1, 2), keepdim=True)
        return (images - mean) * torch.exp(contrast) + mean + 0.5 * brightness


@functools.lru_cache(maxsize=8)
def _reductions(size: int, largest: float, device: torch.device) -> torch.Tensor:
    """Return (_SIDES, size, size) matrices that reduce the resolution of a column of pixels.

    Each one downsamples it, antialiased, and upsamples it again: the first is the identity, the last one
    removes `largest`, a share of `size`.
    """
    identity, matrices = torch.eye(size)[None, None], []
    for side in torch.linspace(size, max(1, size * (1 - largest)), _SIDES).round().int().tolist():
        small = F.interpolate(identity, (side, size), mode="bilinear", antialias=True)
        matrices.append(F.interpolate(small, (size, size), mode="bicubic")[0, 0])
    return torch.stack(matrices).to(device)


def shrink(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (b, h, w) uint8 images to (b, size, size) uint8, antialiased like those of the cache."""
    small = F.interpolate(images.unsqueeze(1).float(), (size, size), mode="bilinear", antialias=True)
    return small.squeeze(1).round_().clamp_(0, 255).to(torch.uint8)


def mixing(mixup: float, cutmix: float) -> v2.Transform | None:
    """Return the transform that blends the images and labels of a batch, or None if both are off.

    mixup: Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018; CutMix: Yun et al., ICCV 2019. If both are on, each
    batch goes through one of them, chosen at random.

    Args:
        mixup, cutmix: alpha of the Beta distribution of a batch's share; 0: off.

    Returns:
        A function of (b, 3, h, w) float images and (b,) int64 labels that returns blended images of the same
        shape and (b, 2) float32 shares of the classes.
    """
    kinds = [
        kind(alpha=alpha, num_classes=len(LABELS))
        for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha
    ]
    return v2.RandomChoice(kinds) if kinds else None


def _pair(strength: Strength) -> tuple[float, float]:
    values = [strength] if isinstance(strength, int | float) else strength
    return values[0], values[-1]


def _of_class(pair: tuple[float, float], labels: torch.Tensor | None) -> Limit:
    """Return the common strength of both classes, or (b,) float32 strengths by class."""
    normal, pneumonia = pair
    if normal == pneumonia:
        return normal
    if labels is None:
        raise ValueError(
            f"labels: expected (b,) int64 for strengths by class ({normal:g}, {pneumonia:g}), got None"
        )
    return torch.where(labels == 1, pneumonia, normal)


def _where(limit: Limit, after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return `after`, but `before` for images with limit 0: a step of strength 0 still rounds."""
    return torch.where(limit.view(-1, 1, 1) > 0, after, before) if isinstance(limit, torch.Tensor) else after


def _uniform(images: torch.Tensor, limit: Limit) -> torch.Tensor:
    """Draw (b,) numbers between -limit and limit."""
    return (torch.rand(len(images), device=images.device) * 2 - 1) * limit
