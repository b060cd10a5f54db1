"""Which weights of a network adapt in the inner loop, which the outer loop alone learns, and
which stay as they came.

    adapt   what is chosen here and the head
    learn   every weight (outer="all"), or what adapts and nothing else (outer="adapted")

What is not learned is frozen (`requires_grad=False`), and `pure` counts it among the buffers.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from metalearn.backbones import adapters
from metalearn.backbones import lora as low_rank
from metalearn.backbones.adapters import is_norm
from metalearn.backbones.heads import within
from metalearn.errors import UsageError
from metalearn.functional.torch_private import ConvolutionBase

Learned = Literal["all", "adapted"]

Choice = Callable[[nn.Module, str | None], Iterable[nn.Parameter]]
"""(network, its head) -> the parameters that adapt beside the head."""


@dataclass(frozen=True)
class Adaptation:
    """A choice of what adapts.

    chosen: beside the head; None for every weight. outer: what the outer loop learns.
    inserted: changes a network in place before anything is chosen.

    Both methods take the network and the name of its head, None where it gives features alone.
    """

    name: str
    chosen: Choice | None = None
    outer: Learned = "all"
    inserted: Callable[[nn.Module, str | None], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.outer not in get_args(Learned):
            raise UsageError(f"adaptation.outer={self.outer} is not known; use all or adapted")

    def prepare(self, module: nn.Module, head: str | None) -> nn.Module:
        """A copy of `module` with what is inserted, and frozen what is not learned.

        Raises UsageError where nothing is chosen, or nothing would be learned.
        """
        module = copy.deepcopy(module)
        if self.inserted is not None:
            module = self.inserted(module, head)
        adapting = self.adapting(module, head)
        if self.outer == "adapted" and adapting is not None:
            if not adapting:
                raise UsageError(
                    f"adaptation={self.name} with adaptation.outer=adapted leaves a network "
                    "without outputs nothing to learn; use adaptation.outer=all"
                )
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in adapting)
        return module

    def adapting(self, module: nn.Module, head: str | None) -> frozenset[str] | None:
        """The names of the weights that adapt, of those that are learned; None for all.

        module: as `prepare` returned it. Raises UsageError where nothing is chosen.
        """
        if self.chosen is None:
            return None
        chosen = {id(parameter) for parameter in self.chosen(module, head)}
        if head is not None:
            chosen |= {id(parameter) for parameter in module.get_submodule(head).parameters()}
        named = module.named_parameters()
        return frozenset(n for n, p in named if p.requires_grad and id(p) in chosen)


def everything() -> Adaptation:
    """Every weight adapts (MAML)."""
    return Adaptation("all")


def head(outer: Learned = "all") -> Adaptation:
    """The head alone adapts (ANIL).

    Raghu, Raghu, Bengio, Vinyals 2020, section 4.
    """
    return Adaptation("head", lambda module, head: (), outer)


def last_k(k: int = 1, outer: Learned = "all") -> Adaptation:
    """The last `k` layers before the head adapt, each with the norm layers that follow it.

    A layer is a linear one, a convolution or an attention, in the order in which the network
    lists them. Raises UsageError for fewer than one, or more than there are.
    """
    if k < 1:
        raise UsageError(f"adaptation.k={k} must be 1 or more; use adaptation=head for none")

    def chosen(module: nn.Module, head: str | None) -> list[nn.Parameter]:
        layers = _layers(module, head)
        if k > len(layers):
            raise UsageError(
                f"adaptation.k={k}, but the network has {len(layers)} layers beside its head"
            )
        return sum(layers[-k:], [])

    return Adaptation("last_k", chosen, outer)


def norm(outer: Learned = "all") -> Adaptation:
    """Scale and shift of the norm layers adapt. Raises UsageError where there are none."""

    def chosen(module: nn.Module, head: str | None) -> list[nn.Parameter]:
        norms = [p for m in module.modules() if is_norm(m) for p in m.parameters(recurse=False)]
        if not norms:
            raise UsageError(
                "adaptation=norm finds no norm layer with weights; use adaptation=bitfit, or "
                "another backbone.norm"
            )
        return norms

    return Adaptation("norm", chosen, outer)


def bitfit(outer: Learned = "all") -> Adaptation:
    """The biases adapt, those of norm layers too. Raises UsageError where only the head has one.

    Ben Zaken, Goldberg, Ravfogel: BitFit: Simple Parameter-efficient Fine-tuning for
    Transformer-based Masked Language-models, 2022, section 3.
    """

    def chosen(module: nn.Module, head: str | None) -> list[nn.Parameter]:
        named = module.named_parameters()
        biases = {n: p for n, p in named if n.rpartition(".")[2].endswith("bias")}
        if all(within(name, head) for name in biases):
            raise UsageError("adaptation=bitfit finds no bias beside the head; use adaptation=norm")
        return list(biases.values())

    return Adaptation("bitfit", chosen, outer)


def lora(rank: int = 4, alpha: float = 4.0, outer: Learned = "adapted") -> Adaptation:
    """Low-rank paths beside the layers adapt (see `metalearn.backbones.lora`), from a start that
    is meta-learned; the network itself stays as it came, unless `outer` says otherwise.

    rank: r. alpha: the path is scaled by alpha / r. Raises UsageError for either at 0 or less, or
    for a network without such layers.

    Hu et al. 2022, section 4.1.
    """
    if rank < 1 or not alpha > 0:
        raise UsageError(
            f"adaptation.rank={rank} must be 1 or more, adaptation.alpha={alpha} above 0"
        )

    def chosen(module: nn.Module, head: str | None) -> list[nn.Parameter]:
        paths = [part for part in module.modules() if isinstance(part, low_rank.LowRank)]
        return [p for path in paths for part in (path.down, path.up) for p in part.parameters()]

    def inserted(module: nn.Module, head: str | None) -> nn.Module:
        return low_rank.insert(module, head, rank, alpha)

    return Adaptation("lora", chosen, outer, inserted)


def tsa(align: bool = True, outer: Learned = "adapted") -> Adaptation:
    """A 1x1 convolution beside every convolution adapts (see `metalearn.backbones.adapters`), from
    0, which is meta-learned; the network itself stays as it came, unless `outer` says otherwise.

    align: also a linear map of the features before the head, where there is one, as in `url`.
    Raises UsageError for a network without convolutions that keep the size of their maps.

    Li, Liu, Bilen 2022, section 3.2.
    """

    def inserted(module: nn.Module, head: str | None) -> nn.Module:
        module = adapters.residual(module, head)
        return adapters.align(module, head) if align and head is not None else module

    def chosen(module: nn.Module, head: str | None) -> list[nn.Parameter]:
        inside = [m.adapter for m in module.modules() if isinstance(m, adapters.ResidualAdapter)]
        return [p for part in inside for p in part.parameters()]

    return Adaptation("tsa", chosen, outer, inserted)


def film(outer: Learned = "adapted") -> Adaptation:
    """A scale and a shift behind every norm layer adapt, from 1 and 0, which are meta-learned; the
    network itself stays as it came, unless `outer` says otherwise. `norm` adapts the layers' own.

    Behind every layer in a network without norm layers. Raises UsageError where there are none.

    Shysheya, Bronskill, Patacchiola, Nowozin, Turner 2022, section 3.
    """

    def chosen(module: nn.Module, head: str | None) -> list[nn.Parameter]:
        inside = [part for part in module.modules() if isinstance(part, adapters.FiLM)]
        return [p for part in inside for p in (part.scale, part.shift)]

    return Adaptation("film", chosen, outer, adapters.film)


def url(outer: Learned = "adapted") -> Adaptation:
    """A linear map of the features adapts, from the identity, which is meta-learned, and the head;
    the network itself stays as it came, unless `outer` says otherwise.

    Raises UsageError for a network without a linear head. Li, Liu, Bilen 2021, section 3.3.
    """
    return Adaptation("url", lambda module, head: (), outer, adapters.align)


def _layers(module: nn.Module, head: str | None) -> list[list[nn.Parameter]]:
    """The parameters of every layer with a weight matrix, and of the norm layers after it."""
    layers: list[list[nn.Parameter]] = []
    attention: str | None = None
    for path, part in module.named_modules():
        if within(path, head) or within(path, attention):
            continue
        if isinstance(part, nn.MultiheadAttention):
            attention = path
        if isinstance(part, nn.Linear | ConvolutionBase | nn.MultiheadAttention):
            layers.append(list(part.parameters()))
        elif is_norm(part) and layers:
            layers[-1] += part.parameters(recurse=False)
    return layers
