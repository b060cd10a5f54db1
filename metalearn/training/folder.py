"""One run in one folder: from a composed configuration to `result.json`."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save

from metalearn.errors import Busy, Diverged, RankLost, UsageError
from metalearn.runtime.files import write_atomic
from metalearn.training.old_configs import renewed
from metalearn.training.sources import changed
from metalearn.types import Meta

_NOT_IDENTITY = ("run_dir", "resume", "tracker")
_LOCK = ".lock"
MANIFEST = "manifest.json"
"""The test episodes beside a published run."""


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of what determines a run's result: all but where it lies, how it is tracked and how
    many threads make its episodes."""
    identity = {name: value for name, value in config.items() if name not in _NOT_IDENTITY}
    if not identity.get("sources"):  # no code but this package's
        identity.pop("sources", None)
    if identity.get("task") == "classification":  # as it was before there were others
        identity.pop("task")
        if "optimizer" in identity:  # of pre-training, which has a head and a loss of its own
            identity = {n: v for n, v in identity.items() if n not in ("head", "loss")}
    training = config.get("training") or {}
    identity["training"] = {n: value for n, value in training.items() if n != "workers"}
    return hashlib.sha256(_dumps(identity).encode()).hexdigest()


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def commit() -> str | None:
    """The commit of this package's checkout, with `-dirty` for uncommitted changes; None
    outside a checkout."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files", __file__):
            return None
        changed = git("status", "--porcelain", "--", ".", "../../conf")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def lock_of(folder: Path, seconds: float = 0.0) -> FileLock | None:
    """The lock of `folder`, for this process; None where another one has it for so long."""
    _make(folder)
    # A soft lock would outlive a process that is killed.
    lock = FileLock(folder / _LOCK, timeout=seconds, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def check_writable(folder: Path, name: str = "run_dir") -> None:
    """Raise UsageError where `folder`, given as `name`, could not be made or written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{name}={folder} cannot be made: {there} is a file; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{name}={folder} cannot be made: {there} is read-only; choose another")


@contextmanager
def held(folder: Path, config: dict[str, Any], resume: str) -> Iterator[Path]:
    """The folder for this run, which holds its `config.yaml`, for this process alone.

    resume: "auto" goes on in `folder` where it holds this very run; "never" takes a fresh
        folder beside it where it holds anything or another process is in it. Raises UsageError
        where `folder` holds a run of another configuration, and names the first difference.
    """
    if resume not in ("auto", "never"):
        raise UsageError(f"resume={resume!r} is not known; use auto or never")
    number, place = 1, folder
    while True:
        lock = lock_of(place)
        if resume == "auto" and lock is None:
            raise Busy(
                f"another process is running in {place}; wait for it or choose another run_dir"
            )
        # The lock alone: nothing is there.
        if lock is not None and (resume == "auto" or len(list(place.iterdir())) < 2):
            break
        if lock is not None:
            lock.release()
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    try:
        claim(place, config)
        yield place
    finally:
        lock.release()


def claim(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml` into `folder`, or find this very run there.

    Raises UsageError where `folder` holds a run of another configuration, and names the first
    difference, or where what it holds is damaged.
    """
    path = folder / "config.yaml"
    if not path.exists():
        _make(folder)
        write_atomic(path, yaml.safe_dump(config, sort_keys=False))
        return
    other = "choose another run_dir, or use resume=never"
    held = read_config(path, use=f"put it back, {other}")
    if edited := changed(held.get("sources"), config.get("sources")):
        raise UsageError(f"{folder} holds a run on other code: {edited}; {other}")
    if config_hash(held) != config_hash(config):
        name, before, now = _difference(held, config)
        raise UsageError(f"{folder} holds a run with {name}={before}, not {now}; {other}")


@contextmanager
def leaving_nothing_of_a_refusal(folder: Path, before: set[str]) -> Iterator[None]:
    """Where a run fails before its first checkpoint, take away what it made in `folder`, which
    would refuse the corrected command. One that diverged, lost a rank or went on stays.

    before: the names that were in `folder` before the run held it.
    """
    try:
        yield
    except (Diverged, RankLost):
        raise
    except Exception:
        kept = {path.name for path in folder.iterdir()} if folder.is_dir() else before
        if kept == before or "config.yaml" in before or {"checkpoints", "result.json"} & kept:
            raise
        for name in kept - before:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not before:
            folder.rmdir()
        raise


def held_hash(folder: Path) -> str:
    """The hash of the configuration in `folder`, as it stands there."""
    return config_hash(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))


def read_config(path: Path, *needed: str, use: str = "put it back") -> dict[str, Any]:
    """The configuration that a run wrote, in the words of today.

    needed: sections, as "held_out", or targets, as "backbone._target_". Raises UsageError where it
    is damaged or lacks one of them; use: what to do then.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("training"), dict | None):
            raise ValueError("it is no configuration")
        config = renewed(_with_manifest(config, path.parent))
        if lost := [name for name in needed if not _holds(config, *name.split("."))]:
            raise ValueError(f"it has no {lost[0]}")
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is damaged ({reason}); {use}") from None
    return config


def _with_manifest(config: dict[str, Any], run: Path) -> dict[str, Any]:
    """Where `run` is published and tested on a manifest, with the path of the one beside it."""
    evaluation = config.get("evaluation")
    if not isinstance(evaluation, dict) or evaluation.get("manifest") != MANIFEST:
        return config
    return {**config, "evaluation": {**evaluation, "manifest": str(run / MANIFEST)}}


def _holds(config: Mapping[str, Any], section: str, target: str | None = None) -> bool:
    found = config.get(section)
    return isinstance(found, dict) and (target is None or isinstance(found.get(target), str))


def told_of_sources(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """A line where a run beside `folder` differs from it in the code of the user alone."""
    if not config.get("sources") or (folder / "config.yaml").exists():
        return []
    for path in sorted(folder.parent.glob(f"{folder.name[:-8]}*/config.yaml")):
        try:
            held = read_config(path)
        except UsageError:
            continue
        edited = changed(held.get("sources"), config["sources"])
        if edited and config_hash({**held, "sources": config["sources"]}) == config_hash(config):
            return [f"{edited} since {path.parent}; this is another run"]
    return []


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"run_dir={folder} cannot be made ({reason}); choose another") from None


def _difference(a: Any, b: Any, path: str = "") -> tuple[str, Any, Any]:
    """The first place where two configurations differ: its name and both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in [*a, *(n for n in b if n not in a)]:
            if not path and name in _NOT_IDENTITY:
                continue
            # As config_hash sees it: 1 and 1.0 differ, and so do a null and a missing value.
            if name not in a or name not in b or _dumps(a[name]) != _dumps(b[name]):
                return _difference(a.get(name), b.get(name), f"{path}.{name}" if path else name)
    return path, a, b


def save_weights(path: Path, meta: Meta) -> str:
    """Write `meta` as safetensors, keys `init/<name>` and so on; returns the file's sha256."""
    data = _serialised(meta)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def weights_sha256(meta: Meta) -> str:
    """The sha256 of the file that `save_weights` would write."""
    return hashlib.sha256(_serialised(meta)).hexdigest()


def _serialised(meta: Meta) -> bytes:
    every = ((f"{p}/{n}", t) for p in ("init", "hyper", "buffers") for n, t in meta[p].items())
    return save({name: t.detach().cpu().contiguous() for name, t in every})


def load_weights(path: Path, like: Meta, sha256: str | None = None) -> Meta:
    """Read what `save_weights` wrote, onto the devices of `like`.

    sha256: what the file must have; None for any. Raises UsageError where it has another, where
    names or shapes are not those of `like`, or the file is damaged.
    """
    try:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if sha256 is not None and digest != sha256:
            raise UsageError(
                f"{path} is not what the run wrote (sha256 {digest[:8]}, in result.json "
                f"{sha256[:8]}); put it back, or train anew with resume=never"
            )
        tensors = load(data)
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged ({error}); train anew with resume=never") from None
    loaded = Meta(init={}, hyper={}, buffers={})
    for part in ("init", "hyper", "buffers"):
        for name, tensor in like[part].items():
            found = tensors.pop(f"{part}/{name}", None)
            if found is None or found.shape != tensor.shape:
                what = "no" if found is None else f"{list(found.shape)} for"
                raise UsageError(f"{path} has {what} {part}/{name} {list(tensor.shape)}")
            loaded[part][name] = found.to(tensor.device, tensor.dtype)
    if tensors:
        raise UsageError(f"{path} has weights that the network lacks: {', '.join(sorted(tensors))}")
    return loaded
