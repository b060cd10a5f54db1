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
  report     <runs> ... [out=report] [by=algorithm,inner.rate]: mean over seeds with interval, as
             Markdown, LaTeX, CSV and one HTML page
  data       list | prepare [dataset=...] | verify [...] | show [split=test] [episode=0] [...]
             | manifest [dataset=...] [evaluation.episodes=600] [out=<file>]
  list       backbones, data sets, strategies, ... ; `list algorithms`: every method and its marks
  new        algorithm|classifier <name> [folder]: a package with a method that works, to change
  score      <name>: the contract and a fixed short measurement, as one line of JSON
  bench      engine [cells=quick|full|conv4-28/K=1,5/T=4] [part=speed|errors|memory|fit|all]
             | episodes [datasets=omniglot,cifar_fs] [ways=5] [shots=1] [queries=15]

Overrides are Hydra's: algorithm=protonet dataset=omniglot training.steps=2000.
`metalearn train --cfg job` prints the composed configuration, also of pretrain."""

COMMANDS = ("train", "pretrain", "evaluate", "compare", "report")
COMMANDS += ("predict", "export", "try")
COMMANDS += ("data", "list", "new", "score", "bench")
"""Each is the `main` of the file of that name in `commands/`."""
_HYDRA = ("train", "pretrain")  # whose --help is Hydra's
_RUNS = ("train", "pretrain", "compare", "evaluate", "predict", "export", "try")


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
        if command in _RUNS:
            _one_process()
        with quiet_interrupt():
            module = import_module(f"metalearn.commands.{command}")
        # A strategy's name may hold ":loop:", which rich would draw as an emoji.
        module.main(arguments, Console(emoji=False))
        sys.stdout.flush()
    except BrokenPipeError:  # `metalearn list | head`
        _discard_output()
        sys.exit(1)
    except KeyboardInterrupt:
        print("metalearn: interrupted; the same command goes on, or starts again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        print(f"metalearn: {line}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # a file of the output on a full disk
            _discard_output()
        sys.exit(2)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_process() -> None:
    """Raise UsageError in the first of several processes that torchrun has started; the others
    end in silence."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return
    if int(os.environ["RANK"]) > 0:
        sys.exit(0)
    raise UsageError(
        f"torchrun started {os.environ['WORLD_SIZE']} processes, but a run is one process on one "
        "device: there is no training over ranks yet; start metalearn without torchrun (-m "
        "hydra/launcher=joblib runs several configurations side by side)"
    )


if __name__ == "__main__":
    main()
