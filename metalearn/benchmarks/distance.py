"""How far a meta-gradient is from another."""

from collections.abc import Mapping

import torch
from torch import Tensor


def distance(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> tuple[float, float]:
    """Relative error |got - want| / |want| and cosine, over all tensors as one vector.

    Names of `want` that `got` lacks count as 0. Raises ValueError for other shapes or names.
    """
    if unknown := set(got) - set(want):
        raise ValueError(f"a gradient of {sorted(unknown)[0]}, which the reference does not have")
    pairs = [(got.get(name, torch.zeros_like(w)), w) for name, w in want.items()]
    if wrong := [(tuple(a.shape), tuple(b.shape)) for a, b in pairs if a.shape != b.shape]:
        raise ValueError(f"a gradient of shape {wrong[0][0]}, not {wrong[0][1]}")
    a = torch.cat([g.detach().double().cpu().flatten() for g, _ in pairs])
    b = torch.cat([w.detach().double().cpu().flatten() for _, w in pairs])
    error = (a - b).norm() / b.norm()
    cosine = a @ b / (a.norm() * b.norm())
    return float(error), float(cosine)
