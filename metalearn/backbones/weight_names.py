"""Which name in a file stands for which tensor of a network: copies, prefixes, ties, heads."""

import inspect
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm
from metalearn.functional.torch_private import NormBase
from metalearn.types import Params

COUNTER = "num_batches_tracked"
_AVERAGES = ("running_mean", "running_var")
_TABLES = ("relative_position_index", "position_ids", "attn_mask")
_HEADS = ("head", "heads", "classifier", "fc", "linear", "logits")


class Copy(NamedTuple):
    """One copy of a network in a file.

    tensors: under the network's names, and under the file's where the network has none. name: what
    tells it from the others; "" where it is alone. others: their names. beside: what of `tensors`
    stands beside the copy in the file.
    """

    tensors: Params
    name: str
    others: list[str]
    beside: Collection[str] = ()


class _Place(NamedTuple):
    """`before` + name in the network is `away` + name in the file."""

    away: str
    before: str
    names: dict[str, str]  # of the network: of the file
    numbers: int


def chosen_copy(given: Params, wanted: Params, source: str, choice: str | None) -> Copy:
    """The copy of the network in `given` that `choice` names: student or teacher, the weights or
    their running average; the only one for None.

    Raises UsageError where there are several that differ and none is chosen, or none of that name.
    """
    copies = _copies(given, wanted)
    known = labels([p.away for p in copies])
    row = 0
    if choice is not None:
        row = chosen_row(choice, known, [p.away for p in copies], source)
    elif not all(_same(given, copies[0], other) for other in copies[1:]):
        raise several(source, known)
    taken = copies[row]
    others = [copy.away for n, copy in enumerate(copies) if n != row]
    theirs = {there: here for here, there in taken.names.items()}
    inside: Params = {}
    outside: Params = {}
    for name, tensor in given.items():
        owner = max((a for a in (taken.away, *others) if name.startswith(a)), key=len, default=None)
        if owner is None:
            outside[name] = tensor
        elif owner == taken.away:
            inside[theirs.get(name, taken.before + name.removeprefix(owner))] = tensor
    named = known[row] if len(copies) > 1 else ""
    rest = [label for n, label in enumerate(known) if n != row]
    outside = {n: t for n, t in outside.items() if n not in inside}
    return Copy({**inside, **outside}, named, rest, set(outside))


def _copies(given: Params, wanted: Params) -> list[_Place]:
    """The places that hold the network, the fullest first: one, where there are no copies."""
    starts = Counter(before for name in wanted for before, _ in _splits(name))
    usual = {before for before, count in starts.items() if count >= len(wanted) / 2}
    tails: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in wanted:
        for before, tail in _splits(name):
            if before in usual:
                tails[tail].append((before, name))
    found: dict[tuple[str, str], dict[str, str]] = {("", ""): {}}
    for name in given:
        for away, tail in _splits(name):
            for before, here in tails.get(tail, ()):
                found.setdefault((away, before), {})[here] = name
    places = [
        _Place(away, before, names, _numbers(names, given, wanted))
        for (away, before), names in found.items()
    ]
    places.sort(key=lambda p: (-len(p.names), -p.numbers, len(p.away) + len(p.before)))
    best = places[0]
    copies = [
        place
        for place in places[1:]
        if place.before == best.before
        and len(place.names) >= len(best.names) / 2
        and place.numbers > best.numbers / 2
    ]
    return [best, *copies]


def named(given: Params, wanted: Params) -> int:
    """How many of the network's names the file has, behind whatever stands before them."""
    return len(_copies(given, wanted)[0].names)


def _numbers(names: dict[str, str], given: Params, wanted: Params) -> int:
    pairs = ((wanted[here], given[there]) for here, there in names.items())
    return sum(ours.numel() for ours, theirs in pairs if ours.shape == theirs.shape)


def _splits(name: str) -> Iterable[tuple[str, str]]:
    words = name.split(".")
    for count in range(len(words)):
        yield "".join(f"{word}." for word in words[:count]), ".".join(words[count:])


def labels(prefixes: Sequence[str]) -> list[str]:
    """What tells each prefix from the others: a word of its own, else the whole."""
    words = [prefix.rstrip(".").split(".") if prefix else [] for prefix in prefixes]
    labels = []
    for row, own in enumerate(words):
        others = {word for n, rest in enumerate(words) if n != row for word in rest}
        alone = [word for word in own if word not in others]
        labels.append(alone[0] if alone else ".".join(own) or "plain")
    return labels


def several(source: str, known: Sequence[str]) -> UsageError:
    """Where copies differ and none is chosen."""
    return UsageError(
        f"{source} holds several copies of this network; choose one by "
        f"backbone.copy={' or '.join(known)}"
    )


def chosen_row(choice: str, labels: Sequence[str], prefixes: Sequence[str], source: str) -> int:
    """Which of the copies behind `prefixes` is meant. Raises UsageError where none is."""
    wholes = [prefix.rstrip(".") for prefix in prefixes]
    for known in (labels, wholes):
        if choice in known:
            return known.index(choice)
    within = [n for n, whole in enumerate(wholes) if choice in whole.split(".")]
    if len(within) == 1:
        return within[0]
    raise UsageError(
        f"{source} holds no copy {choice!r} of this network; use backbone.copy="
        f"{' or '.join(labels)}, or null where there is one"
    )


def _same(given: Params, a: _Place, b: _Place) -> bool:
    return all(
        name in a.names and equal(given[a.names[name]], given[there])
        for name, there in b.names.items()
    )


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether they are the same numbers of the same kind."""
    return a.dtype == b.dtype and torch.equal(a, b)


def ties(module: nn.Module) -> list[list[str]]:
    """The names of each tensor of `module` that has several."""
    names: dict[int, list[str]] = defaultdict(list)
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[id(tensor)].append(name)
    return [group for group in names.values() if len(group) > 1]


def tied(given: Params, groups: Sequence[Sequence[str]], source: str) -> Params:
    """`given` with every name of a tensor that the network has under several and the file under
    one. Raises UsageError where the file has another tensor under each."""
    given = dict(given)
    for group in groups:
        there = [name for name in group if name in given]
        for name in there[1:]:
            if not equal(given[there[0]], given[name]):
                raise UsageError(
                    f"{there[0]} and {name} are one tensor in this network, and two in {source}; "
                    "choose the backbone that it was saved from"
                )
        given |= {name: given[there[0]] for name in group if there}
    return given


def unread(module: nn.Module) -> set[str]:
    """What a file may lack: the running averages of norm layers that normalise by the batch, and
    tables of whole numbers that follow from the shape of the network."""
    tables = {
        name
        for name, buffer in module.named_buffers()
        if not buffer.is_floating_point() and name.rpartition(".")[2] in _TABLES
    }
    return tables | {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if isinstance(part, NormBase) and part.training
        for name in _AVERAGES
    }


def averages(names: Collection[str]) -> list[str]:
    """Those of `names` that are running averages."""
    return [name for name in names if name.rpartition(".")[2] in _AVERAGES]


def heads(module: nn.Module) -> list[str]:
    """Where `module` classifies, by path: linear layers, or where one was taken away.

    What a network of timm's calls its classifier; else the last layer of what is called a head;
    else the last layer of all. None of these counts where it is not linear.
    """
    paths = {part: path for path, part in module.named_modules()}
    classifier = getattr(module, "get_classifier", None)
    if callable(classifier) and not inspect.signature(classifier).parameters:
        parts: Any = classifier()
        parts = parts if isinstance(parts, tuple | list) else [parts]
        known = [part for part in parts if isinstance(part, nn.Module) and part in paths]
        return [path for part in known for path in _last(part, paths, nn.Conv2d)]
    for name in _HEADS:
        part = getattr(module, name, None)
        if isinstance(part, nn.Module):
            return _last(part, paths, nn.Conv2d)
    return _last(module, paths)


def _last(
    module: nn.Module, paths: dict[nn.Module, str], also: type[nn.Module] = nn.Linear
) -> list[str]:
    last: nn.Module | None = None
    for part in module.modules():
        if isinstance(part, nn.Identity) or any(True for _ in part.parameters(recurse=False)):
            last = part
    return [paths[last]] if isinstance(last, nn.Linear | nn.Identity | also) else []


def beyond(module: nn.Module, names: Iterable[str], places: Collection[str]) -> list[str]:
    """Those of `names` that are of a larger body than that of `module`: of a block that a list of
    its blocks does not have, or of a layer that has no such weight.

    places: where the head is. What stands beside all parts of the network (a decoder, a pooler,
    another head), or of the one part that is its body, is not among them, nor are running averages
    that a norm layer does not use.
    """
    parts, buffers = dict(module.named_modules()), dict(module.named_buffers())
    tops = {name.partition(".")[0] for name in module.state_dict()} - set(places)
    whole = tops.pop() if len(tops) == 1 else ""
    found = []
    for name in names:
        words = name.split(".")
        count = next(n for n in range(len(words) - 1, -1, -1) if ".".join(words[:n]) in parts)
        path, word = ".".join(words[:count]), words[count]
        longer = word.isdigit() and any(n.isdigit() for n, _ in parts[path].named_children())
        of_head = any(f"{place}.".startswith(f"{path}.") for place in places)
        unused = word in _AVERAGES and isinstance(parts[path], NormBase | BatchNorm)
        beside = path == whole and len(words) > count + 1
        if name in buffers or path in places or unused or (beside and not longer):
            continue
        if longer or (path and not of_head):
            found.append(name)
    return found


def linear_layers(tensors: Params) -> list[str]:
    """What may be a linear layer of a head, by path; no pooler is."""
    ends = [n for n, t in tensors.items() if n.endswith(".weight") and t.ndim == 2]
    ends = [name for name in ends if "pooler" not in name.split(".")]
    return [name.removesuffix(".weight") for name in ends]


def of_layers(names: Iterable[str], layers: Iterable[str]) -> list[str]:
    """Those of `names` that belong to one of `layers`."""
    starts = tuple(f"{layer}." if layer else "" for layer in layers)
    return [name for name in names if name.startswith(starts)] if starts else []
