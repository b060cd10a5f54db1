"""`metalearn <command> [hydra overrides]`."""

import os
import sys
from importlib import import_module

from rich.console import Console

from metalearn.errors import UsageError, nearest, one_line
from metalearn.runtime.signals import quiet_interrupt

USAGE = """usage: metalearn <command> [overrides]

  train      train, validate and test; `-m` sweeps over comma-separated values
  pretrain   train a backbone on the base classes, for `train backbone.weights=<its run folder>`
  evaluate   measure a run again: run=<folder> [manifest=<file>] [evaluation.episodes=1000 ...]
  predict    your own images: run=<folder> images=<folder> support=<folder of class folders>
             [out=predictions]: a CSV with calibrated confidence, and the least certain
  export     run=<folder> [support=<folder of class folders>] [out=export] [format=torch,onnx]: the
             adapted network as a file that plain torch loads
  try        <folder of class folders> [backbone=...] [out=try]: from pictures to a classifier with
             an honest estimate, for predict and export run=try
  compare    untrained, pre-training, fine-tuning and meta-learning on the same episodes
  select     backbones ranked for a data set without training: backbones=[...] [accuracy=true]
  report     <runs> ... [out=report] [by=algorithm,inner.rate] [--to wandb]: mean over seeds with
             interval, as Markdown, LaTeX, CSV and one HTML page
  sweep      plan study.yaml [folder] | work <folder> [cpus=1] [minutes=60] [most=10] [wait=false]
             | submit <folder> [workers=4] [partition=...] [minutes=60] [executor=slurm|local]
             | status <folder> [watch=5] | retry <folder> | stop <folder>: many runs, that survive
  reproduce  <table> [--dry-run] [cells=...] [seeds=0,1,2]: runs what is missing of a table of
             published figures, and writes experiments/<table>/README.md; `list table` names them
  publish    <run> [<folder>] [hub=user/name]: weights, settings, episodes, result and model card,
             the sha256 of each; nothing of this machine
  pull       <folder, address or user/name> <folder>: a published run, its hashes checked
  data       list | prepare [dataset=...] | verify [...] | show [split=test] [episode=0] [...]
             | manifest [dataset=...] [evaluation.episodes=600] [out=<file>]
  list       backbones, data sets, strategies, ... ; `list algorithms`: every method and its marks
  new        algorithm|classifier <name> [folder]: a package with a method that works, to change
  score      <name>: the contract and a fixed short measurement, as one line of JSON
  bench      engine [cells=quick|full|conv4-28/K=1,5/T=4] [part=speed|errors|memory|fit|all]
             | evaluate [cells=conv4-28/K=10/T=32] | metric [methods=protonet,r2d2]
             | episodes [datasets=omniglot,cifar_fs] [ways=5] [shots=1] [queries=15]

Overrides are Hydra's: algorithm=protonet dataset=omniglot training.steps=2000.
`metalearn train --cfg job` prints the composed configuration, also of pretrain."""

COMMANDS = ("train", "pretrain", "evaluate", "predict", "export", "try", "compare", "select")
COMMANDS += ("report", "sweep", "reproduce", "publish", "pull")
COMMANDS += ("data", "list", "new", "score", "bench")
"""Each is the `main` of the file of that name in `commands/`."""
_HYDRA = ("train", "pretrain")  # whose --help is Hydra's
_RANKS = ("train", "pretrain")
"""Torchrun may start several processes for one of these."""
_RUNS = (*_RANKS, "compare", "select", "evaluate", "predict", "export", "try", "reproduce")


def main() -> None:
    """Entry point. A user's mistake is one line on standard error and exit code 2."""
    command, *arguments = sys.argv[1:] or ["help"]
    wants_help = {"-h", "--help"} & {command, *(() if command in _HYDRA else arguments)}
    if command == "help" or wants_help:
        print(USAGE)
        return
    try:
        if command not in COMMANDS:
            near = nearest(command, COMMANDS)
            raise UsageError(f"no command {command}{near}; use {', '.join(COMMANDS)}")
        _check_ranks(command, arguments)
        with quiet_interrupt():
            module = import_module(f"metalearn.commands.{command}")
        # A strategy's name may hold ":loop:", which rich would draw as an emoji.
        module.main(arguments, Console(emoji=False))
        sys.stdout.flush()
    except BrokenPipeError:  # `metalearn list | head`
        _discard_output()
        sys.exit(1)
    except KeyboardInterrupt:
        if _speaks():
            line = "interrupted; the same command goes on, or starts again"
            print(f"metalearn: {line}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        if _speaks(error):
            print(f"metalearn: {line}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # a file of the output on a full disk
            _discard_output()
        sys.exit(2)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_ranks(command: str, arguments: list[str]) -> None:
    """Raise UsageError in the first of several processes that torchrun has started, where the
    command is one process; the others end in silence, as where there is only something to print."""
    several = _started()
    if several < 2:
        return
    options = [argument for argument in arguments if argument.startswith("-")]
    if command in _RANKS and not options:
        return
    if [command, *arguments[:1]] == ["sweep", "work"]:  # each is a worker of its own
        return
    if os.environ["RANK"] != "0":
        sys.exit(0)
    if command in _RANKS and {"-m", "--multirun"} & set(options):
        raise UsageError(
            f"torchrun started {several} processes for one run, and -m asks for several; start "
            "each by torchrun, or all without it (hydra/launcher=joblib runs them side by side)"
        )
    if command in _RUNS:
        raise UsageError(
            f"torchrun started {several} processes, and {command} is one process; start it without "
            "torchrun, which is for train and pretrain"
        )


def _speaks(error: BaseException | None = None) -> bool:
    """Whether this process tells of a mistake: of several that torchrun started the first, or
    another where that is gone."""
    return getattr(error, "speaks", False) or _started() < 2 or os.environ["RANK"] == "0"


def _started() -> int:
    """How many processes torchrun started for this command; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and "RANK" in os.environ else 1


if __name__ == "__main__":
    main()
