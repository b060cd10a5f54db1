"""Several networks as one: features side by side, logits averaged, or weights for each member that
the inner loop adapts to the task.

    concat    y = W [f_1(x), ..., f_M(x)] + b
    logits    y = 1/M sum over m of  (W_m f_m(x) + b_m)
    weighted  y = sum over m of  softmax(a)_m (W_m f_m(x) + b_m),   a [M] adapts as W and b do

Without a head the features side by side; `classifiers.MemberWeights` weighs the members of these
by the support set.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones.heads import unit
from metalearn.errors import UsageError, nearest

Combination = Literal["concat", "logits", "weighted"]


class Prepared(nn.Module):
    """A network behind what its weights expect of images in [0, 1]: size, channels, scale."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        size: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.net, self.size, self.channels = net, size, channels
        for name, values in (("mean", mean), ("std", std)):
            held = None if values is None else torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, held, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to what the network makes of it."""
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if self.channels is not None:
            x = x.expand(-1, self.channels, -1, -1)
        x = x if self.mean is None else x - self.mean.to(x)
        return self.net(x if self.std is None else x / self.std.to(x))


class MemberHeads(nn.Module):
    """A linear head for each member, and how much each counts. All in one module, so that whatever
    adapts the head adapts them together."""

    def __init__(self, widths: Sequence[int], ways: int, weighted: bool):
        super().__init__()
        layers = [nn.Linear(width, ways) for width in widths]
        self.widths = list(widths)
        self.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers], 1))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))
        self.mix = nn.Parameter(torch.zeros(len(widths))) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        """Features side by side `[B, D]` to logits `[B, N]`."""
        parts = zip(x.split(self.widths, 1), self.weight.split(self.widths, 1), strict=True)
        each = torch.stack([f @ w.T for f, w in parts]) + self.bias.unsqueeze(1)  # [M, B, N]
        if self.mix is None:
            return each.mean(0)
        return torch.einsum("m,mbn->bn", self.mix.softmax(0), each)


class Ensemble(nn.Module):
    """Members, each from images to features, behind one head.

    members: by name; one module under two names is one network with one set of weights.
    widths: of each member's features, in their order.
    ways: N of the head; None leaves it out, and the output is the features `[B, D]`.
    frozen: members whose weights nothing changes; True for all.
    unit_length: each member's features are divided by their length, so that none outweighs the
        others by its scale.

    Raises UsageError for fewer than one member, and for names and combinations that are not known.
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        widths: Sequence[int],
        ways: int | None = 5,
        combine: Combination = "concat",
        frozen: bool | Sequence[str] = True,
        unit_length: bool = True,
    ):
        super().__init__()
        if not members:
            raise UsageError(
                "backbone.members is empty; add one by +backbone@backbone.members.NAME=conv4"
            )
        if combine not in get_args(Combination):
            known = ", ".join(get_args(Combination))
            raise UsageError(f"backbone.combine={combine} is not known; use {known}")
        if ways is None and combine != "concat":
            raise UsageError(
                f"backbone.combine={combine} is of heads, and this algorithm works on features; "
                "use backbone.combine=concat, and classifier=member_weights to weigh the members"
            )
        names = list(members) if frozen is True else list(frozen or ())
        for name in names:
            if name not in members:
                raise UsageError(
                    f"backbone.frozen: no member {name}{nearest(name, members)}; use "
                    f"{', '.join(members)}"
                )
            members[name].requires_grad_(False)
        self.members = nn.ModuleDict(members)
        self.widths, self.unit_length = list(widths), unit_length
        self.head: nn.Module = nn.Identity()
        if ways is not None:
            total = sum(self.widths)
            self.head = (
                nn.Linear(total, ways)
                if combine == "concat"
                else MemberHeads(self.widths, ways, combine == "weighted")
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, N]`, or to features `[B, D]` without a head."""
        each = [member(x).flatten(1) for member in self.members.values()]
        return self.head(torch.cat([unit(f) for f in each] if self.unit_length else each, 1))
