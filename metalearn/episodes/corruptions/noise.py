"""Noise and light: Gaussian, shot and impulse noise; brightness and contrast."""

import torch
from torch import Tensor

from metalearn.episodes.corruptions.chance import normal, poisson, uniform


def gaussian_noise(x: Tensor, scale: float, seeds: Tensor) -> Tensor:
    """A normal number added to every value."""
    return (x + scale * normal(seeds, 0, *x.shape[1:]).to(x)).clamp(0, 1)


def shot_noise(x: Tensor, photons: float, seeds: Tensor) -> Tensor:
    """The share of `photons` that arrive, of x * photons on average."""
    return (poisson(seeds, 0, x * photons) / photons).to(x).clamp(0, 1)


def impulse_noise(x: Tensor, amount: float, seeds: Tensor) -> Tensor:
    """A share of all values is 0 or 1, as often."""
    u = uniform(seeds, 0, *x.shape[1:])
    hit = torch.where(u < amount / 2, torch.zeros_like(x), torch.ones_like(x))
    return torch.where(u < amount, hit, x)


def brightness(x: Tensor, more: float, seeds: Tensor) -> Tensor:
    """The value of HSV is raised; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + more).clamp(0, 1)
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-12)), raised)


def contrast(x: Tensor, kept: float, seeds: Tensor) -> Tensor:
    """Each channel moves towards its mean."""
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * kept + mean).clamp(0, 1)
