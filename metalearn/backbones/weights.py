"""Weights from files: read without running code from them, matched by name and shape, reported.

A file may be `.safetensors`, or what `torch.save` wrote, which is read with `weights_only=True`.
A run folder of metalearn's stands for the weights in it.
"""

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.types import Params

FILES = ("backbone.safetensors", "weights.safetensors")
"""What a run folder of `pretrain` and of `train` holds."""

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
COUNTER = "num_batches_tracked"


class Weights(NamedTuple):
    """Tensors of a network, and what is known of them.

    tensors: under the names of the file. source: where they come from, in words. sha256: of the
    file. images: what the network was trained to see, as far as it is known: `size`, `channels`,
    `mean` and `std`, as `ImageTransform` takes them.
    """

    tensors: Params
    source: str
    sha256: str | None = None
    images: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Report:
    """What of a file reached a network.

    matched: names in the network that were loaded. missing: names that the file lacks, or has
    in another shape; the head and the file's is not among them. unexpected: names in the file that
    the network does not have. head: what became of the head, in words. share: of the body's
    numbers that were loaded, 0 to 1.
    """

    source: str
    sha256: str | None
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    head: str
    share: float
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line for a full match, and one more for each kind of exception."""
        digest = f" (sha256 {self.sha256[:12]})" if self.sha256 else ""
        count = len(self.matched) + len(self.missing)
        lines = [
            f"weights: {self.source}{digest}: {len(self.matched)} of {count} tensors matched, "
            f"{self.share:.1%} of the numbers of the body; {self.head}"
        ]
        for told, names in (
            ("adapted", self.changed),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
        ):
            if names:
                lines.append(f"  {told}: {_listed(names)}")
        return "\n".join(lines)


def read_weights(path: str | Path, sha256: str | None = None) -> Weights:
    """The weights in `path`: a `.safetensors`, `.pth` or `.th` file, or a run folder.

    sha256: what the file must have, or its first 8 digits or more.

    Raises UsageError where there is none, where its sha256 is another, or where it holds more than
    tensors and plain values; nothing in it is executed.
    """
    given, path = Path(path), Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UsageError(f"{given} holds no {' or '.join(FILES)}; has that run finished?")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"no weights at {given}; correct backbone.weights")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    check_pin(str(given), digest, sha256)
    if path.suffix == ".safetensors":
        tensors, told = _safetensors(path)
    else:
        tensors, told = _pickled(path), {}
    if not tensors:
        raise UsageError(f"{given} holds no tensors; give a state dict")
    return Weights(tensors, str(given), digest, told.get("images") or {})


def check_pin(source: str, digest: str | None, pin: str | None) -> None:
    """Raise UsageError where `digest` does not begin with `pin`, of 8 digits or more."""
    if pin is None:
        return
    if digest is None:
        raise UsageError(f"{source} come without a sha256; leave out backbone.sha256")
    if len(pin) < 8 or not digest.startswith(pin.lower()):
        raise UsageError(f"{source} has sha256 {digest}, not {pin}; correct backbone.sha256")


def _safetensors(path: Path) -> tuple[Params, dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = json.loads(metadata.get("metalearn", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); fetch or train it anew") from None
    # A run folder of `train` keeps a whole `Meta`.
    parts = {name: name.partition("/") for name in tensors}
    if all(part in ("init", "hyper", "buffers") and slash for part, slash, _ in parts.values()):
        tensors = {parts[n][2]: t for n, t in tensors.items() if parts[n][0] != "hyper"}
    return tensors, told if isinstance(told, dict) else {}


def _pickled(path: Path) -> Params:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path} holds more than tensors and plain values, or is damaged; "
            "save its state_dict() alone, best as .safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} cannot be read ({reason}); fetch it anew") from None
    return max(_dicts(held), key=lambda found: sum(t.numel() for t in found.values()))


def _dicts(held: Any) -> Iterable[Params]:
    """The tensors of `held` and of every dict inside it, where checkpoints keep theirs."""
    if not isinstance(held, Mapping):
        return [{}]
    own = {str(n): t for n, t in held.items() if isinstance(t, Tensor)}
    inside = (found for part in held.values() for found in _dicts(part))
    return [own, *inside]


def load_into(module: nn.Module, weights: Weights, min_match: float = 0.9) -> Report:
    """Copy `weights` into `module`, in place, and say what reached it.

    Names match after what stands before all of them (`module.`, `backbone.`) is taken away. The
    head, the last linear layer, matches the file's last one under any name; where the classes are
    others it keeps its start. A first convolution for other channels takes the sum or a repetition
    of the file's; position embeddings for another image size are resampled.

    Raises UsageError where less than `min_match` of the body's numbers would be loaded.
    """
    wanted = {n: t for n, t in module.state_dict().items() if not n.endswith(COUNTER)}
    given = {n: t for n, t in weights.tensors.items() if not n.endswith(COUNTER)}
    given = _renamed(given, wanted)
    head = _head(wanted)
    theirs = _head(given)
    if head and theirs and head != theirs and f"{head}.weight" not in given:
        given = {_moved(n, theirs, head): t for n, t in given.items()}

    fitting: Params = {}
    changed: list[str] = []
    for name, tensor in wanted.items():
        if name in given:
            found = _fitted(given[name], tensor, module)
            if found is not None:
                fitting[name] = found
                changed += [name] if found is not given[name] else []
    of_head = {n for n in wanted if head and n.startswith(f"{head}.")}
    body = [n for n in wanted if n not in of_head]
    loaded = sum(wanted[n].numel() for n in body if n in fitting)
    share = loaded / max(sum(wanted[n].numel() for n in body), 1)
    if len(of_head & set(fitting)) not in (0, len(of_head)):
        fitting = {n: t for n, t in fitting.items() if n not in of_head}
    report = Report(
        weights.source,
        weights.sha256,
        matched=list(fitting),
        missing=[n for n in body if n not in fitting],
        unexpected=[n for n in given if n not in wanted],
        head=_told(head, of_head, wanted, fitting, given),
        share=share,
        changed=changed,
    )
    if share < min_match:
        raise UsageError(
            f"{weights.source} has {share:.1%} of the numbers of this network's body, and at least "
            f"{min_match:.0%} are needed (missing: {_listed(report.missing)}; unexpected: "
            f"{_listed(report.unexpected)}); choose the backbone that it was saved from"
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            wanted[name].copy_(tensor)
    return report


def _renamed(given: Params, wanted: Params) -> Params:
    """`given` with one prefix taken away and one put before, so that most numbers match."""

    def prefixes(names: Iterable[str]) -> list[str]:
        parts = (n.split(".") for n in names)
        found = {".".join(p[:k]) + "." for p in parts for k in (1, 2) if len(p) > k}
        return ["", *sorted(found)]

    def matching(away: str, before: str) -> int:
        names = {before + n.removeprefix(away): n for n in given if n.startswith(away)}
        return sum(
            t.numel() for n, t in wanted.items() if n in names and given[names[n]].shape == t.shape
        )

    if not all(n in wanted for n in given):
        away = max(prefixes(given), key=lambda away: matching(away, ""))
        before = max(prefixes(wanted), key=lambda before: matching(away, before))
        if matching(away, before) > matching("", ""):
            # What does not stand behind the prefix keeps its name, and is reported.
            given = {
                before + n.removeprefix(away) if n.startswith(away) else n: t
                for n, t in given.items()
            }
    return given


def _head(tensors: Params) -> str | None:
    """The name of the last layer where it is linear: what classifies."""
    weights = [n for n, t in tensors.items() if n.endswith(".weight") and t.ndim > 1]
    if not weights or tensors[weights[-1]].ndim != 2:
        return None
    return weights[-1].removesuffix(".weight")


def _moved(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(f"{old}.") else name


def _fitted(given: Tensor, wanted: Tensor, module: nn.Module) -> Tensor | None:
    """`given` in the shape of `wanted`, or None."""
    if given.shape == wanted.shape:
        return given
    if given.ndim == wanted.ndim == 4 and given.shape[1] == 3:
        if (len(given), *given.shape[2:]) == (len(wanted), *wanted.shape[2:]):
            from timm.models import adapt_input_conv

            return adapt_input_conv(wanted.shape[1], given)
    elif given.ndim == wanted.ndim == 3 and len(given) == 1 and given.shape[2] == wanted.shape[2]:
        from timm.layers.pos_embed import resample_abs_pos_embed

        tokens = getattr(module, "num_prefix_tokens", 1)
        side = round((wanted.shape[1] - tokens) ** 0.5)
        if side**2 + tokens == wanted.shape[1]:
            return resample_abs_pos_embed(given, [side, side], num_prefix_tokens=tokens)
    return None


def _told(
    head: str | None, of_head: set[str], wanted: Params, fitting: Params, given: Params
) -> str:
    if not of_head:
        return "no head"
    if of_head & set(fitting):
        return f"the head ({head}) too"
    ours = len(wanted[f"{head}.weight"])
    found = given.get(f"{head}.weight")
    theirs = f"the file's has {len(found)}" if found is not None else "the file has none"
    return f"the head ({head}) is new, with {ours} outputs ({theirs})"


def _listed(names: list[str], max_names: int = 4) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more
