"""What the targets of a configuration take: names, types and lowest values."""

import inspect
import logging
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import Tensor

from metalearn.errors import DataError, UsageError, nearest, reason_of

# What the framework passes itself.
_INJECTED = ("module", "rule", "loss", "adapting", "kinds", "params", "optimizer", "last_epoch")
_PLAIN = {int: "a whole number", float: "a finite number", bool: "true or false"}
_PLAIN |= {str: "text", Path: "a path"}
_SEQUENCES = (list, tuple, Sequence)

_LOWEST = {
    0: "seed dataset.seed training.mixup training.cutmix training.rotation training.ema "
    "training.label_smoothing training.workers evaluation.seed evaluation.steps held_out.val "
    "held_out.test held_out.seed algorithm.steps inner.rate outer.optimizer.lr optimizer.lr",
    1: "episodes.ways episodes.shots episodes.queries training.steps training.meta_batch "
    "training.ways training.shots training.queries training.epochs training.batch_size "
    "training.record_every training.validate_every training.patience training.checkpoint_every "
    "training.keep evaluation.episodes evaluation.validation_episodes evaluation.train_images "
    "inner.batch_size backbone.filters dataset.min_images outer.schedule.T_max "
    "outer.schedule.step_size outer.schedule.total_iters",
}
_LARGEST = 3.4e38  # of float32
_ABOVE_ZERO = "training.clip_norm training.seconds"


def check_values(config: Mapping[str, Any]) -> None:
    """Raise UsageError for a number that is too low, or a choice that every command knows.

    Numbers that are absent or null pass.
    """
    for low, names in _LOWEST.items():
        for name in names.split():
            value = at(config, name)
            if isinstance(value, int | float) and not value >= low:
                raise UsageError(f"{name}={value} must be {low} or more")
    for name in _ABOVE_ZERO.split():
        value = at(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}={value} must be above 0, or null")
    _check_size(config)
    check_choice("resume", config["resume"], ("auto", "never"))
    if (clock := at(config, "training.clock")) is not None:
        check_choice("training.clock", clock, ("wall", "processor"))
    check_choice("tracker.mode", config["tracker"]["mode"], ("online", "offline", "disabled"))


def _check_size(value: Any, name: str = "") -> None:
    """Raise UsageError for a number anywhere that float32, or an int64, does not hold."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_size(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            _check_size(part, name)
    elif isinstance(value, float) and _LARGEST < abs(value) < math.inf:
        raise UsageError(f"{name}={value} is more than float32 holds; use a smaller number")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UsageError(f"{name}={value} must be below 2**63, as 64 bits hold no more")


def at(config: Any, name: str) -> Any:
    """What stands at a dotted path, "" for all; None where there is nothing."""
    for part in filter(None, name.split(".")):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UsageError where `value` is not one of `choices`."""
    if value not in choices:
        near = nearest(value, choices)
        raise UsageError(f"{name}={value} is not known{near}; use {_either(choices)}")


def arguments(path: str | None) -> list[str]:
    """What the target at `path` takes by keyword, beside what the framework passes."""
    if path is None:
        return []
    parameters = inspect.signature(target(path)).parameters.values()
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in by_name if name not in _INJECTED]


def factory(node: Any, name: str) -> Callable[..., Any]:
    """What calls the target of `node` with its values, and with what comes later by keyword.

    Raises UsageError where the target cannot be called with them.
    """
    check_node(node, name)
    values: dict[str, Any] = dict(node)
    if values.get("root") is not None:
        values["root"] = Path(values["root"])

    def made(**late: Any) -> Any:
        try:
            if late:
                # Hydra would copy a module into a config; a partial keeps it out of its hands.
                return instantiate({**values, "_partial_": True}, _convert_="all")(**late)
            return instantiate(values, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__
            if isinstance(cause, UsageError | DataError):
                raise cause from None
            if cause is None:
                raise
            told = f"{name} cannot be made: {reason_of(cause)}"
            raise UsageError(f"{told}; correct its values") from cause

    return made


def make(node: Any, name: str) -> Any:
    """Call what `node` names. Raises UsageError where it cannot be called with its values."""
    return factory(node, name)()


@contextmanager
def explained(name: str, correct: str) -> Iterator[None]:
    """Make one line of whatever a class that is not ours says of its arguments."""
    try:
        yield
    except (UsageError, DataError):
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        told = " ".join(str(cause or error).split())
        told = told if isinstance(error, ValueError) else f"{type(error).__name__}: {told}"
        raise UsageError(f"{name}: {told}; correct {correct}") from None


def corner(t: Tensor) -> Tensor:
    """A copy of a few numbers of `t`, with as many dimensions: to try what would take all."""
    return t.detach()[tuple(slice(2) for _ in t.shape)].clone()


def check_node(node: Any, name: str) -> None:
    """Raise UsageError where the target of `node` cannot be called with its values."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UsageError(f"{name}={node} names no target; choose one (see metalearn list)")
    path = str(node["_target_"])
    called = target(path, f"{name}._target_")
    try:
        hints = get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (NameError, TypeError):  # names that its author imports for type checkers alone
        hints = {}
    parameters = inspect.signature(called).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = arguments(path)
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key not in known and not takes_any:
            raise UsageError(
                f"{name}.{key} is not known to {path}{nearest(key, known)}; "
                f"it takes {', '.join(known) or 'nothing'}"
            )
        if key in hints and not _fits(value, hints[key]):
            told = "null" if value is None else value
            raise UsageError(f"{name}.{key}={told} must be {_told(hints[key])}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_node(value, f"{name}.{key}")


def target(path: str, name: str = "_target_") -> Any:
    """What `path` names. Raises UsageError where there is nothing of that name."""
    logger = logging.getLogger("hydra.utils")  # it would print the error too, over three lines
    before, logger.disabled = logger.disabled, True
    try:
        return get_object(path)
    except Exception as error:
        reason = str(error).splitlines()[-1]
        raise UsageError(f"{name}={path} cannot be imported: {reason}") from None
    finally:
        logger.disabled = before


def _fits(value: Any, hint: Any) -> bool:
    """Whether a configured value is of a plain type; types that are not plain fit everything."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin in _SEQUENCES:
        if not isinstance(value, list | tuple):
            return False
        parts = [part for part in get_args(hint) if part is not Ellipsis]
        if origin is tuple and Ellipsis not in get_args(hint):
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return not parts or all(_fits(item, parts[0]) for item in value)
    if hint in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (isinstance(value, int) if hint is int else math.isfinite(value))
    if hint is Path:
        return isinstance(value, str | Path)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return hint is not Tensor


def _told(hint: Any) -> str:
    """A type in a user's words."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        told = [_told(part) for part in get_args(hint) if part not in (Tensor, type(None))]
        return _either([*told, "null"] if type(None) in get_args(hint) else told)
    if origin is Literal:
        return _either([str(choice) for choice in get_args(hint)])
    if origin in _SEQUENCES:
        parts = get_args(hint)
        if origin is tuple and Ellipsis not in parts:
            return f"[{', '.join(map(_told, parts))}]"
        return f"a list [...] of which each is {_told(parts[0])}" if parts else "a list [...]"
    return _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _either(choices: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def option(node: Mapping[str, Any]) -> str:
    """The name that the target of `node` has on the command line: FirstOrder -> first_order."""
    name = str(node["_target_"]).rpartition(".")[2]
    if name.isupper() or name in ("MeTAL", "ProtoNet"):
        return name.lower()
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
