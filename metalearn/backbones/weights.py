"""Weights of a file into a network: matched by name, refused where a part is missing, reported."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.backbones.weight_files import Weights, check_pin, read_weights
from metalearn.backbones.weight_names import (
    COUNTER,
    Copy,
    averages,
    beyond,
    chosen_copy,
    heads,
    linear_layers,
    named,
    of_layers,
    tied,
    ties,
    unread,
)
from metalearn.backbones.weight_order import in_order, in_words
from metalearn.backbones.weight_shapes import converted, fitted, is_position
from metalearn.errors import UsageError
from metalearn.types import Params

__all__ = ["IMAGENET", "Report", "Weights", "check_pin", "load_into", "read_weights"]

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Report:
    """What of a file reached a network.

    matched: names in the network that were loaded. missing: names that the file lacks, or has
    in another shape; a new head is not among them. unexpected: names in the file that the network
    does not have. head: what became of the head, in words. share: of the body's numbers that were
    loaded, 0 to 1. changed: what was given another shape. copy: which of several copies in the
    file it was; "" for the only one. others: their names. names: from the network's to the file's,
    where these are others and were matched by order.
    """

    source: str
    sha256: str | None
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    head: str
    share: float
    changed: list[str] = field(default_factory=list)
    copy: str = ""
    others: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for a full match, and one more for each kind of exception."""
        digest = f" (sha256 {self.sha256[:12]})" if self.sha256 else ""
        copy = f", its copy {self.copy} (not {', '.join(self.others)})" if self.copy else ""
        count = len(self.matched) + len(self.missing)
        lines = [
            f"weights: {self.source}{digest}{copy}: {len(self.matched)} of {count} tensors "
            f"matched, {self.share:.1%} of the numbers of the body; {self.head}"
        ]
        told = {"adapted": self.changed, "missing": self.missing, "unexpected": self.unexpected}
        lines += [f"  {word}: {_listed(names)}" for word, names in told.items() if names]
        if self.names:
            lines.append(f"  {in_words(self.names, self.matched[:2])}")
        return "\n".join(lines)


@dataclass
class _Match:
    """What `given` has for a network. fitting: in its shapes. misfits: in others. extra: for a
    larger one."""

    given: Params
    fitting: Params = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def load_into(
    module: nn.Module,
    weights: Weights,
    min_match: float = 1.0,
    copy: str | None = None,
    has_head: bool = True,
) -> Report:
    """Copy `weights` into `module`, in place, and say what reached it.

    Names match after what stands before all of them (`module.`, `backbone.`) is taken away; where
    they are those of another code, the tensors by their order, kinds and shapes, all or none. Every
    tensor of the body has to be there; running averages only where the network reads them. The
    head is what classifies: where the file has none, or one of other classes, it keeps its start;
    under another name it is the one linear layer that the network lacks. A first convolution for
    other channels takes the sum or a repetition of the file's; position embeddings and what else
    timm knows to convert are resampled.

    min_match: below 1 a part of the body will do, of at least this share of its numbers, but
    never without the averages, position embeddings and tokens.
    copy: which one, where the file holds several: a word of their names.
    has_head: False where `module` gives features.

    Raises UsageError, and changes nothing, where a part is missing, or there are several copies.
    """
    wanted = {n: t for n, t in module.state_dict().items() if not n.endswith(COUNTER)}
    given = {n: t for n, t in weights.tensors.items() if not n.endswith(COUNTER)}
    places = heads(module)
    layers = [path for path in places if has_head and of_layers(wanted, [path])]
    of_head = of_layers(wanted, layers)
    spared = {*of_head, *unread(module)}

    def matched(tensors: Params, beside: Collection[str] = ()) -> _Match:
        found = _Match(tied(tensors, ties(module), weights.source))
        for name in wanted.keys() & found.given.keys():
            tensor = fitted(name, found.given[name], wanted[name], module)
            if tensor is None:
                found.misfits.append(name)
            else:
                found.fitting[name] = tensor
        unknown = found.given.keys() - wanted.keys() - set(beside)
        found.extra = beyond(module, [n for n in found.given if n in unknown], places)
        return found

    taken, refused = Copy(given, "", []), None
    try:
        taken = chosen_copy(given, wanted, weights.source, copy)
    except UsageError as error:
        if named(given, wanted) >= len(wanted) / 2:
            raise
        refused = error  # unless they are found by their order
    match = matched(taken.tensors, taken.beside)
    if match.extra or not spared.issuperset(wanted.keys() - match.fitting.keys()):
        others = map(matched, converted(match.given, module))
        match = max((match, *others), key=lambda m: (len(m.fitting.keys() - spared), -len(m.extra)))
    names: dict[str, str] = {}
    poor = len(match.fitting) < len(wanted) / 2
    if poor and (order := in_order(given, wanted, of_head, weights.source, copy)):
        names = order.names
        tensors = {here: given[there] for here, there in names.items()}
        taken = Copy(tensors, order.name, [*order.others])
        match = matched(tensors)
    elif refused is not None:
        raise refused
    head = _fit_head(match, wanted, of_head, layers)

    fitting = {n: match.fitting[n] for n in wanted if n in match.fitting}  # in their order
    missing = [n for n in wanted if n not in fitting and n not in spared]
    loaded, lacking = (
        sum(wanted[n].numel() for n in names if n not in of_head) for names in (fitting, missing)
    )
    report = Report(
        weights.source,
        weights.sha256,
        matched=list(fitting),
        missing=missing,
        unexpected=[n for n in match.given if n not in wanted],
        head=head,
        share=loaded / (loaded + lacking) if lacking else 1.0,
        changed=[n for n, t in fitting.items() if taken.tensors.get(n, t).shape != t.shape],
        copy=taken.name,
        others=taken.others,
        names=names,
    )
    _check(report, match, taken, wanted, min_match)
    with torch.no_grad():
        for name, tensor in fitting.items():
            wanted[name].copy_(tensor)
    return report


def _fit_head(match: _Match, wanted: Params, of_head: Sequence[str], layers: Sequence[str]) -> str:
    """Leave a head of other classes out of `match`, or find it under another name; what became of
    it, in words."""
    if not of_head:
        return "no head"
    fitting, given = match.fitting, match.given
    told = " and ".join(layers)
    if all(name in fitting for name in of_head):
        return f"the head ({told}) too"
    absent = not any(name in given for name in of_head)
    unknown = [layer for layer in linear_layers(given) if f"{layer}.weight" not in wanted]
    if absent and len(layers) == len(unknown) == 1:
        moved = {n: given.get(unknown[0] + n.removeprefix(layers[0])) for n in of_head}
        if all(t is not None and t.shape == wanted[n].shape for n, t in moved.items()):
            fitting |= {n: t for n, t in moved.items() if t is not None}
            match.given = {n: t for n, t in given.items() if n not in of_layers(given, unknown)}
            return f"the head ({told}) too"
    for name in of_head:
        fitting.pop(name, None)
    ours = len(wanted[f"{layers[0]}.weight"])
    found = given.get(f"{unknown[0] if absent and len(unknown) == 1 else layers[0]}.weight")
    theirs = f"the file's has {len(found)}" if found is not None else "the file has none"
    return f"the head ({told}) is new, with {ours} outputs ({theirs})"


def _check(report: Report, match: _Match, taken: Copy, wanted: Params, min_match: float) -> None:
    """Raise UsageError where what `report` tells is not enough, or cannot be used."""
    where = f"{report.source}, {taken.name}," if taken.name else report.source
    missing = report.missing
    lost = averages(missing)
    if lost and len(lost) == len(missing):
        raise UsageError(
            f"{where} lacks running averages, which this network's norm layers read "
            f"({_listed(lost)}); use backbone.norm=transductive, or weights that have them"
        )
    misfits = [name for name in missing if name in match.misfits]
    shapes = [f"{n} is {_kind(match.given[n], wanted[n])}" for n in misfits]
    shapes = shapes[:2] + ([f"{len(shapes) - 2} more"] if len(shapes) > 2 else [])
    needed = [n for n in missing if n in lost or is_position(n)]
    if missing and (report.share < min_match or min_match == 1 or needed or not report.matched):
        least = f" (at least {min_match:.0%} are needed)" if report.share < min_match < 1 else ""
        raise UsageError(
            f"{where} has {report.share:.1%} of the numbers of this network's body{least}: "
            f"missing: {_listed(sorted(missing, key=lambda n: n not in needed))}; "
            f"{'of another kind: ' + ', '.join(shapes) + '; ' if shapes else ''}unexpected: "
            f"{_listed(report.unexpected)}; choose the backbone that it was saved from"
        )
    if not report.matched:
        raise UsageError(
            f"{where} has nothing of this network (it has {_listed(list(match.given))}); choose "
            "the backbone that it was saved from"
        )
    if match.extra and min_match == 1:
        raise UsageError(
            f"{where} is of a larger network, with {_listed(match.extra)}; choose the backbone "
            "that it was saved from"
        )
    for name in report.matched:
        tensor = match.fitting[name]
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(f"{where} has {name} with values that are not finite; take another")


def _kind(given: Tensor, wanted: Tensor) -> str:
    if given.shape == wanted.shape:
        return f"{given.dtype}, not {wanted.dtype}".replace("torch.", "")
    return f"{list(given.shape)}, not {list(wanted.shape)}"


def _listed(names: Sequence[str], max_names: int = 4) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more
