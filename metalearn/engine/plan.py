"""How T tasks are run: a value that a user writes, or that autotuning measures and chooses."""

import functools
from typing import NamedTuple

from metalearn.errors import UsageError

Batching = str | int
"""`auto`, `loop`, `threads`, `vmap` or a number of tasks at a time, all but the first with options
after a plus sign, as in `loop+compile`."""

_WAYS = ("loop", "threads", "vmap")
_OPTIONS = ("compile", "forward_over_reverse", "im2col", "whole", "serial")
_FORMER = {"forward": "forward_over_reverse", "unfold": "im2col"}
"""What options were called in run folders of before December 2026."""


class Plan(NamedTuple):
    """One way to run T tasks.

    tasks: under `vmap` at a time, 0 for all of them; None for one after another.
    threads: spread the tasks over the cores, one thread each, instead of the operations. Always
        compiled: a module runs one task at a time, and Python's lock lets one thread run.
    compile: trace each piece once and compile it.
    forward_over_reverse: take Hessian-vector products so, in the strategies that have them.
    im2col: convolutions as matrix products of unfolded images.
    whole: the whole gradient of a task, under `vmap` the mean of all, as one piece. For small
        networks and few steps: no time goes into calls, but the compiler takes longer with every
        step.
    serial: every operation on one core. For networks so small that sharing costs more.
    """

    tasks: int | None = None
    threads: bool = False
    compile: bool = False
    forward_over_reverse: bool = False
    im2col: bool = False
    whole: bool = False
    serial: bool = False

    def __str__(self) -> str:
        way = "threads" if self.threads else "loop"
        if self.tasks is not None:
            way = str(self.tasks) if self.tasks else "vmap"
        named = self._replace(compile=self.compile and not self.threads)
        return "+".join([way, *(name for name in _OPTIONS if getattr(named, name))])


def parse(batching: Batching) -> Plan | None:
    """The plan that `batching` names, None for "auto". Raises UsageError for anything else."""
    if batching == "auto":
        return None
    if (plan := _plan(str(batching))) is None:
        raise UsageError(
            f"batching={batching!r} is not known; use auto, or {', '.join(_WAYS)} or a number of "
            f"tasks, with any of {', '.join('+' + name for name in _OPTIONS)}"
        )
    return plan


@functools.cache
def _plan(text: str) -> Plan | None:
    """None where `text` names no plan."""
    way, *given = text.split("+")
    options = [_FORMER.get(name, name) for name in given]
    number = way.isdecimal() and int(way) > 0
    unknown = way not in _WAYS and not number
    if unknown or not set(options) <= set(_OPTIONS) or len(set(options)) < len(options):
        return None
    tasks = int(way) if number else 0 if way == "vmap" else None
    threads = way == "threads"
    return Plan(
        tasks, threads, threads or "compile" in options, *(o in options for o in _OPTIONS[1:])
    )
