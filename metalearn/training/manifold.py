"""Manifold mixup: what a layer inside the network takes is mixed in pairs, and so are the labels.

    h = share * g_k(x_i) + (1 - share) * g_k(x_j),   share ~ Beta(alpha, alpha)          (eq. 1)

g_k: the network up to layer k, drawn anew for every batch, the first layer (the images themselves)
among them.

Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio: Manifold Mixup: Better Representations
by Interpolating Hidden States, 2019, section 2. Few-shot: Mangla et al. (S2M2) 2020, section 3.2.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError, nearest
from metalearn.training.mixing import Labelled


def mixed_layers(
    module: nn.Module, head: str, x: Tensor, named: Sequence[str] | None = None
) -> list[str]:
    """The submodules whose input may be mixed, in the order in which `x` reaches them.

    named: by the user; None for the first layers and blocks that have a matrix or a kernel, but
        for the head. x: a few images `[B, C, H, W]` that the network is tried on.

    Raises UsageError where one of `named` is not there, or takes no tensor of B rows.
    """
    if named is not None and not named:
        raise UsageError("manifold_mixup.layers=[] is empty; name a layer or more, or use null")
    paths = dict(module.named_modules())
    for name in named or ():
        if name not in paths:
            near = nearest(name, [path for path in paths if path])
            raise UsageError(f"manifold_mixup.layers has {name}, no part of the backbone{near}")
    reached: list[str] = []

    def noted(name: str, _: nn.Module, given: tuple) -> None:
        h = given[0] if given else None
        usable = isinstance(h, Tensor) and h.is_floating_point() and len(h) == len(x)
        if usable and name not in reached:
            reached.append(name)

    candidates = list(named) if named else _blocks(module, head)
    handles = [
        paths[name].register_forward_pre_hook(functools.partial(noted, name)) for name in candidates
    ]
    training = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            module.eval()(x)
    finally:
        for part, mode in training.items():
            part.training = mode
        for handle in handles:
            handle.remove()
    if missing := set(named or ()) - set(reached):
        raise UsageError(
            f"manifold_mixup.layers has {min(missing)}, which takes no tensor with a row for every "
            "image; name another"
        )
    if not reached:
        raise UsageError("manifold_mixup finds no layer; name some in manifold_mixup.layers")
    return reached


def _blocks(module: nn.Module, head: str) -> list[str]:
    """The children of `module`, containers and a lone child opened, that have a matrix or a kernel
    and not the head."""
    found: list[str] = []

    def walk(part: nn.Module, prefix: str) -> None:
        for name, child in part.named_children():
            path = f"{prefix}{name}"
            if path == head or all(p.ndim < 2 for p in child.parameters()):
                continue
            if isinstance(child, nn.Sequential | nn.ModuleList) or f"{head}.".startswith(
                f"{path}."
            ):
                walk(child, f"{path}.")
            else:
                found.append(path)

    walk(module, "")
    while len(found) == 1 and any(True for _ in module.get_submodule(found[0]).named_children()):
        (alone,) = found
        found.clear()
        walk(module.get_submodule(alone), f"{alone}.")
        if not found:
            return [alone]
    return found


@contextmanager
def mixing_inside(module: nn.Module, layers: Sequence[str], batch: Labelled) -> Iterator[None]:
    """Around the pass of `batch.x` through `module`: what one of `layers` takes the first time is
    mixed."""
    done, partner = False, batch.partner
    assert partner is not None

    def mixed(_: nn.Module, given: tuple) -> tuple | None:
        nonlocal done
        if done:
            return None
        done = True
        h, *rest = given
        return torch.lerp(h[partner], h, batch.share), *rest

    layer = layers[int(batch.place * len(layers))]
    handle = module.get_submodule(layer).register_forward_pre_hook(mixed)
    try:
        yield
    finally:
        handle.remove()
