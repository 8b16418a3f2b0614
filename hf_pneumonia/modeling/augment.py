"""Batched augmentation on the device, on gray films. Knows nothing about files, labels or normalisation."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Augment(nn.Module):
    """Vary films as patients and X-ray rooms vary; every film of a batch draws its own numbers.

    One warp (rotation, zoom, shift and flip in a single resampling), then blur, exposure and noise. Applied
    in training only; the random numbers come from torch's global generator of the films' device, which a
    checkpoint holds.

    Args:
        rotation: largest angle to either side, in degrees; 0 turns it off.
        zoom: largest relative change of scale, each axis on its own (0.1: 0.9 to 1.1); 0 turns it off.
        shift: largest shift, as a share of the side; 0 turns it off.
        blur: largest standard deviation of a Gaussian blur, in pixels; 0 turns it off.
        exposure: largest change of the logarithm of gamma and of contrast, and twice the largest change of
            brightness as a share of the full range; 0 turns it off.
        noise: largest standard deviation of Gaussian noise, as a share of the full range; 0 turns it off.
        horizontal_flip: probability of a left-right flip. A flipped film shows a heart on the wrong side and
            a mirrored "R", which no film to be judged will; off unless a recipe asks.
    """

    def __init__(
        self,
        rotation: float = 0.0,
        zoom: float = 0.0,
        shift: float = 0.0,
        blur: float = 0.0,
        exposure: float = 0.0,
        noise: float = 0.0,
        horizontal_flip: float = 0.0,
    ) -> None:
        super().__init__()
        self.rotation, self.zoom, self.shift = rotation, zoom, shift
        self.blur, self.exposure, self.noise = blur, exposure, noise
        self.horizontal_flip = horizontal_flip

    @torch.no_grad()
    def forward(self, films: torch.Tensor) -> torch.Tensor:
        """(b, h, w) uint8 -> (b, h, w) float32 in [0, 1]. The input is left as it is."""
        films = films.float().div(255)
        if self.rotation or self.zoom or self.shift or self.horizontal_flip:
            films = self._warp(films)
        if self.blur:
            films = self._blur(films)
        if self.exposure:
            films = self._expose(films)
        if self.noise:
            deviation = torch.rand(len(films), 1, 1, device=films.device) * self.noise
            films = films + deviation * torch.randn_like(films)
        return films.clamp_(0, 1)

    def _warp(self, films: torch.Tensor) -> torch.Tensor:
        b, h, w = films.shape
        angle = _uniform(films, math.radians(self.rotation))
        scale_x, scale_y = 1 + _uniform(films, self.zoom), 1 + _uniform(films, self.zoom)
        flip = torch.where(torch.rand(b, device=films.device) < self.horizontal_flip, -1.0, 1.0)
        # Rows of the inverse map in grid_sample's coordinates, which run from -1 to 1: a shift by a share s
        # of the side is 2 s.
        cos, sin = torch.cos(angle), torch.sin(angle)
        across = torch.stack([flip * cos / scale_x, -sin / scale_x, 2 * _uniform(films, self.shift)], 1)
        down = torch.stack([flip * sin / scale_y, cos / scale_y, 2 * _uniform(films, self.shift)], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), [b, 1, h, w], align_corners=False)
        # Zeros outside, as outside the collimator.
        return F.grid_sample(films.unsqueeze(1), grid, "bilinear", "zeros", align_corners=False).squeeze(1)

    def _blur(self, films: torch.Tensor) -> torch.Tensor:
        """Separable Gaussian, a width for each film: a grouped convolution with a film per group."""
        b, h, w = films.shape
        reach = min(math.ceil(3 * self.blur), min(h, w) - 1)
        sigma = (torch.rand(b, 1, device=films.device) * self.blur).clamp_min(1e-3)
        offsets = torch.arange(-reach, reach + 1, device=films.device)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).unsqueeze(1)
        padded = F.pad(films.unsqueeze(0), [reach] * 4, mode="reflect")
        across = F.conv2d(padded, kernel.unsqueeze(2), groups=b)
        return F.conv2d(across, kernel.unsqueeze(3), groups=b).squeeze(0)

    def _expose(self, films: torch.Tensor) -> torch.Tensor:
        gamma, contrast, brightness = (_uniform(films, self.exposure).view(-1, 1, 1) for _ in range(3))
        films = films.clamp(1e-4, 1).pow(torch.exp(gamma))
        mean = films.mean(dim=(1, 2), keepdim=True)
        return (films - mean) * torch.exp(contrast) + mean + 0.5 * brightness


def _uniform(films: torch.Tensor, limit: float) -> torch.Tensor:
    """(b,) numbers between -limit and limit."""
    return (torch.rand(len(films), device=films.device) * 2 - 1) * limit
