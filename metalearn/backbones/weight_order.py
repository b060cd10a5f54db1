"""Weights under another code's names: matched by their order, kinds and shapes, or by rules."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.backbones.weight_names import chosen_row, equal, labels, several
from metalearn.errors import UsageError
from metalearn.types import Params

_AVERAGES = ("running_mean", "running_var")
_TENSORFLOW = ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight")
"""Names of EfficientNets in PyTorch whose weights come from TensorFlow."""


class _Layer(NamedTuple):
    """The tensors of one module, in order: what each is, and its name."""

    kinds: tuple[tuple[str, tuple[int, ...]], ...]
    names: tuple[str, ...]


class Ordered(NamedTuple):
    """One copy of a network under another code's names.

    names: from the network's to the file's. name, others: as of `weight_names.Copy`.
    """

    names: dict[str, str]
    name: str = ""
    others: Sequence[str] = ()


def in_order(
    given: Params, wanted: Params, of_head: Collection[str], source: str, choice: str | None = None
) -> Ordered | None:
    """The names of the copy that `choice` says, where the file has layers of the same tensors, by
    kind and shape, in the same order as the network's body; None where it has none.

    Looked for behind every prefix, so that an optimizer's state or a second copy may stand beside.
    Raises UsageError where copies differ and none is chosen, or none of that name.
    """
    behind: dict[str, Params] = {"": given}
    for name, tensor in given.items():
        words = name.split(".")[:-1]
        for count in range(1, len(words)):
            behind.setdefault(".".join(words[:count]) + ".", {})[name] = tensor
    found: dict[tuple[str, ...], tuple[str, dict[str, str]]] = {}
    for prefix, some in behind.items():
        if len(some) >= len(wanted) / 2 and (names := _matched(some, wanted, of_head)):
            body = tuple(there for here, there in names.items() if here not in of_head)
            if body not in found or len(names) >= len(found[body][1]):
                found[body] = prefix, names  # of several with a head, the longest prefix
    if not found:
        return None
    prefixes = [prefix for prefix, _ in found.values()]
    copies, known, row = [names for _, names in found.values()], labels(prefixes), 0
    if choice is not None:
        row = chosen_row(choice, known, prefixes, source)
    elif not all(
        n in c and equal(given[c[n]], given[t]) for c in copies[1:] for n, t in copies[0].items()
    ):
        raise several(source, known)
    others = [label for n, label in enumerate(known) if n != row]
    return Ordered(copies[row], known[row] if others else "", others)


def _matched(given: Params, wanted: Params, of_head: Collection[str]) -> dict[str, str] | None:
    """The name in the network: the name in the file, for every tensor of the network's body.

    What follows them in the file may be linear layers, its head, and single numbers, as metrics
    keep. The network's own head is matched where that has its shape. Running averages are left out
    where the network has none.
    """
    if not any(n.endswith(_AVERAGES) for n in wanted):
        given = {n: t for n, t in given.items() if not n.endswith(_AVERAGES)}
    ours, theirs = _layers(wanted), _layers(given)
    body = [layer for layer in ours if not of_head or layer.names[0] not in of_head]
    rest = [layer for layer in theirs[len(body) :] if any(shape for _, shape in layer.kinds)]
    if not body or [a.kinds for a in body] != [b.kinds for b in theirs[: len(body)]]:
        return None
    if not all(_linear(layer) for layer in rest):
        return None  # of a larger body
    pairs = list(zip(body, theirs, strict=False))
    head = [layer for layer in ours if layer.names[0] in of_head]
    if [a.kinds for a in head] == [b.kinds for b in rest]:
        pairs += zip(head, rest, strict=True)
    return {a: b for mine, other in pairs for a, b in zip(mine.names, other.names, strict=True)}


def _linear(layer: _Layer) -> bool:
    kinds = dict(layer.kinds)
    return kinds.keys() <= {"weight", "bias"} and len(kinds.get("weight", ())) == 2


def _layers(tensors: Params) -> list[_Layer]:
    """In the order of `tensors`, which is that in which modules were made."""
    found: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        found.setdefault(name.rpartition(".")[0], []).append((name, tensor))
    return [
        _Layer(
            tuple((name.rpartition(".")[2], tuple(t.shape)) for name, t in layer),
            tuple(name for name, _ in layer),
        )
        for layer in found.values()
    ]


def renamed(tensors: Params, rules: Mapping[str, str], source: str) -> Params:
    r"""`tensors` under the names that the user's `rules` make of theirs.

    rules: from a regular expression to what takes the place of what it matches (`\1` is its first
    group), each in turn. Raises UsageError for a rule that matches no name, or that is no regular
    expression, and where two tensors get one name.
    """
    names = list(tensors)
    for rule, new in rules.items():
        try:
            changed = [re.sub(rule, new, name) for name in names]
            matched = any(re.search(rule, name) for name in names)
        except (re.error, IndexError) as error:
            raise UsageError(f"backbone.rename: {rule!r}: {new!r} is no rule ({error})") from None
        if not matched:
            raise UsageError(
                f"backbone.rename: {rule!r} matches no name of {source}, such as {names[0]}"
            )
        names = changed
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"backbone.rename gives two tensors of {source} the name {double}")
    return dict(zip(names, tensors.values(), strict=True))


def as_trained(name: str, tensors: Collection[str]) -> dict[str, Any]:
    """Options under which a network of timm's computes what these weights were trained for.

    EfficientNets of TensorFlow pad unevenly at a stride of 2, and their norms have another
    epsilon; timm has them so under names that begin with "tf_".
    """
    of_tensorflow = all(any(n.endswith(end) for n in tensors) for end in _TENSORFLOW)
    if of_tensorflow and name.startswith("efficientnet"):
        return {"pad_type": "same", "bn_eps": 1e-3}
    return {}


def in_words(names: Mapping[str, str], most: Sequence[str]) -> str:
    """A line on what `in_order` found. most: of the network's names, those that are shown."""
    shown = ", ".join(f"{name} from {names[name]}" for name in most if name in names)
    return f"named otherwise there: matched by order, kind and shape ({shown}, ...)"
