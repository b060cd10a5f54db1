"""The one check of a built network, through Python and the command line alike."""

from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
from torch import nn

from metalearn.errors import UsageError, reason_of
from metalearn.functional.derivatives import check_differentiable, check_layers
from metalearn.functional.dropout import dropout_stream
from metalearn.functional.module import PureModule
from metalearn.functional.repeatable import check_repeatable
from metalearn.functional.torch_private import has_hook
from metalearn.types import Inputs, Params, first_tensor, map_tensors


def check_network(
    net: PureModule,
    weights: Params,
    x: Inputs,
    order: int = 2,
    batched: bool = False,
    adapting: Collection[str] | None = None,
) -> None:
    """Raise UsageError, with the name of the layer, where `net` cannot be meta-learned on `x`.

    weights: what it has in a run, by its names; what is left out, or of another shape, is as it
        started. x: inputs `[B, *X]` on the device of the run; two of them are used.
    order, batched, adapting: see `check_differentiable`; of order 0 nothing is differentiated.

    Made once for each order, `batched`, device and mode: what passed is remembered with the
    network, which is one algorithm's. A network of torch's
    own layers passes unlooked at. An error of the forward pass itself is raised as it is, but for
    weights and inputs of different types.
    """
    device = first_tensor(x).device
    if has_passed(net, order, batched, device):
        return
    if not _plain(net) or unlike_types({**net.params, **net.buffers, **weights}, x):
        _check(net, weights, x, order, batched, adapting)
    pass_over(net, order, batched, device)


def has_passed(net: PureModule, order: int, batched: bool, device: torch.device) -> bool:
    """Whether `check_network` was asked this before, and found nothing."""
    return (order, batched, device, net.modes()) in net.passed


def pass_over(net: PureModule, order: int, batched: bool, device: torch.device) -> None:
    """Let `check_network` not be made again."""
    net.passed.add((order, batched, device, net.modes()))


def check_twice_differentiable(net: PureModule, x: Inputs, batched: bool = False) -> None:
    """Raise UsageError as `check_network` does for two derivatives by all weights as they start,
    whatever layers `net` is made of. x: a few inputs `[B, *X]`."""
    _check(net, {}, x, 2, batched, None)


def _check(
    net: PureModule,
    weights: Params,
    x: Inputs,
    order: int,
    batched: bool,
    adapting: Collection[str] | None,
) -> None:
    device = first_tensor(x).device
    x = map_tensors(lambda t: t[:2].detach(), x)
    held = {**net.params, **net.buffers}
    fits = {n for n, t in held.items() if n in weights and weights[n].shape == t.shape}
    mine = {n: weights[n].detach() if n in fits else t.to(device) for n, t in held.items()}
    check_layers(net, order)
    with _repeating(device):
        try:
            check_repeatable(net, mine, x)
        except UsageError:
            raise
        except Exception:
            if types := unlike_types(mine, x):
                raise UsageError(types) from None
            raise
        if order:
            check_differentiable(net, mine, x, order, batched, adapting)


def check_takes(net: PureModule, weights: Params, x: Inputs) -> None:
    """Raise UsageError where the forward pass of `net` fails on two of `x` `[B, *X]`."""
    x = map_tensors(lambda t: t[:2], x)
    try:
        with torch.no_grad(), _repeating(first_tensor(x).device):
            net.apply(weights, x)
    except UsageError:
        raise
    except Exception as error:
        shape = "x".join(map(str, first_tensor(x).shape[1:]))
        why = unlike_types(weights, x) or reason_of(error)
        raise UsageError(f"the network cannot take examples of {shape}: {why}") from None


def _repeating(device: torch.device) -> AbstractContextManager[None]:
    """Nothing that is drawn inside shows in what follows."""
    return dropout_stream(torch.zeros((), dtype=torch.int64, device=device))


def _plain(net: PureModule) -> bool:
    """Whether it is made of layers that are known to pass."""
    writes = (nn.Embedding,)  # with max_norm
    parts = [*net.module.modules()]
    return not net.exact and not any(isinstance(p, writes) or has_hook(p) for p in parts)


def unlike_types(weights: Params, x: Inputs) -> str:
    """What is wrong where weights and inputs are real numbers of different types; "" else."""
    own = {t.dtype for t in weights.values() if t.is_floating_point()}
    given = first_tensor(x).dtype
    if not given.is_floating_point or not own or given in own:
        return ""
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own))
    wanted = str(given).removeprefix("torch.")
    how = {"float32": "float()", "float64": "double()"}.get(wanted, f"to(torch.{wanted})")
    return (
        f"the network's weights are {names} and the inputs {wanted}; call .{how} on the network"
        + ("" if wanted != "float32" else ", and use precision= for what it computes in")
    )
