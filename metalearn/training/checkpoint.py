"""Checkpoints that are whole or absent, and that run no code when they are read.

A checkpoint is a folder `step-00000400` with `tensors.safetensors` and `state.json`, the
latter holding everything else and the sha256 of both parts. It is written beside its place
and renamed into it, so that a kill at any moment leaves the earlier checkpoints usable.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_VERSION = 2


class DamagedCheckpoint(Exception):
    """A checkpoint that is incomplete or was changed; the message is one line."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (nested dicts and lists of tensors and JSON values) as step `step`.

    Returns the checkpoint's folder. An existing one of this step is replaced.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    data = save(tensors)
    _write(partial / "tensors.safetensors", data)
    head = {"version": _VERSION, "step": step, "sha256": _digest(data, step, plain)}
    _write(partial / "state.json", json.dumps({**head, "state": plain}).encode())
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return target


def digest_of(state: dict[str, Any]) -> str:
    """The sha256 of `state`, which `save_checkpoint` could be given."""
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    return _digest(save(tensors), 0, plain)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` was given. Raises DamagedCheckpoint."""
    try:
        head = json.loads((path / "state.json").read_bytes())
        data = (path / "tensors.safetensors").read_bytes()
        version, digest = head["version"], head["sha256"]
        step, plain = head["step"], head["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({type(error).__name__})") from error
    if version != _VERSION:
        raise DamagedCheckpoint(f"{path} has format {version}, this version reads {_VERSION}")
    if _digest(data, step, plain) != digest:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its sha256")
    try:
        return _join(plain, load(data))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} is no checkpoint ({type(error).__name__})") from error


def latest_checkpoint(
    folder: Path, warn: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """The newest state that can be read, or None.

    Damaged ones are named to `warn`, and moved to `damaged-step-...`, where no pruning counts
    them as one of the newest.
    """
    paths = sorted(folder.glob("step-*"), reverse=True)
    for path in paths:
        try:
            return load_checkpoint(path)
        except DamagedCheckpoint as error:
            instead = "the beginning" if path == paths[-1] else "the one before"
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            warn(f"{error}; going on from {instead}")
    return None


def prune_checkpoints(folder: Path, keep: int, also: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and that of step `also` (the best)."""
    paths = sorted(folder.glob("step-*"))
    for path in paths[: max(len(paths) - keep, 0)]:
        if also is None or path.name != f"step-{also:08d}":
            shutil.rmtree(path)


def _digest(data: bytes, step: int, plain: Any) -> str:
    # JSON keeps Python's floats and the order of keys, so what was read is written the same.
    return hashlib.sha256(data + json.dumps([step, plain]).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under their path."""
    if isinstance(value, Tensor):
        while path in tensors:  # {1: a, "1": b}, or a name with a slash
            path += "'"
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(value, Counter):
        return {"$counter": sorted(value.items())}
    if isinstance(value, dict):
        parts = {key: _split(v, f"{path}/{key}", tensors) for key, v in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in parts):
            return parts
        for key in parts:
            if not (key is None or isinstance(key, bool | int | float | str)):
                raise TypeError(f"{path} has {key!r} as a key, which a checkpoint cannot hold")
        return {"$items": [[key, part] for key, part in parts.items()]}
    if isinstance(value, list | tuple):
        items = [_split(v, f"{path}/{number}", tensors) for number, v in enumerate(value)]
        return {"$tuple" if isinstance(value, tuple) else "$list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{path} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "use an optimizer and a schedule whose state is numbers and tensors"
    )


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, inside),) = value.items()
        if kind == "$tensor":
            return tensors[inside]
        if kind == "$counter":
            return Counter(dict(inside))
        if kind == "$items":
            return {key: _join(v, tensors) for key, v in inside}
        if kind == "$list":
            return _join(inside, tensors)
        if kind == "$tuple":
            return tuple(_join(inside, tensors))
    return {key: _join(v, tensors) for key, v in value.items()}


def generator_states() -> dict[str, Tensor]:
    """The states of torch's global generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    # Asking a device for its state would start CUDA on it, also in a run on the CPU.
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def restore_generators(states: dict[str, Tensor]) -> None:
    """Set the generators as `generator_states` found them; devices that are gone are left out."""
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{index}"], index)
