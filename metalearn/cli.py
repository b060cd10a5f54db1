"""`metalearn <command> [hydra overrides]`."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
import yaml
from hydra.errors import InstantiationException
from rich.console import Console
from rich.table import Table

from metalearn.commands.config import MISTAKES, check_sweep, compose, conf_folder, register, reopen
from metalearn.commands.mistakes import explain
from metalearn.data import DataError
from metalearn.errors import UsageError, nearest

USAGE = """usage: metalearn <command> [overrides]

  train      train, validate and test; `-m` sweeps over comma-separated values
  pretrain   train a backbone on the base classes, for `train backbone.weights=<its run folder>`
  evaluate   measure a run again: run=<folder> [manifest=<file>] [evaluation.episodes=1000 ...]
  compare    untrained, pre-training, fine-tuning and meta-learning on the same episodes
  data       list | prepare [dataset=...] | verify [...] | show [split=test] [episode=0] [...]
             | manifest [dataset=...] [evaluation.episodes=600] [out=<file>]
  list       algorithms, backbones, data sets, strategies, experiments
  bench      engine [cells=quick|full|conv4-28/K=1,5/T=4] [part=speed|errors|memory|fit|all]
             | episodes [datasets=omniglot,cifar_fs] [ways=5] [shots=1] [queries=15]

Overrides are Hydra's: algorithm=protonet dataset=omniglot training.steps=2000.
`metalearn train --cfg job` prints the composed configuration, also of pretrain."""

GROUPS = (
    "algorithm",
    "gradient",
    "inner",
    "backbone",
    "adaptation",
    "head",
    "loss",
    "dataset",
    "sampling",
    "augmentation",
    "images",
    "outer",
    "outer/schedule",
    "pretrain/optimizer",
    "pretrain/schedule",
    "tracker",
    "experiment",
    "debug",
)
# Hydra's options that make sense here, and whether a value follows.
OPTIONS = {
    **dict.fromkeys(("-m", "--multirun", "-h", "--help", "--hydra-help", "--resolve"), False),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-i", "--info"), True),
    **dict.fromkeys(("-cd", "--config-dir"), True),
}

STATES = """
prepared: decoded, in the cache; found: its archive is on this machine
download: fetched when used; yours: give your own copy; made: computed, or of others"""

OWN = {"show": ("split", "episode", "out"), "manifest": ("out",)}
"""Arguments of `metalearn data <action>` that are no overrides."""


def train(arguments: list[str], console: Console) -> None:
    """`metalearn train`. Options of Hydra (-m, --cfg, ...) go through Hydra's own main."""
    if any(argument.startswith("-") for argument in arguments):
        _through_hydra("train", arguments, console)
        return
    from metalearn.commands import train as jobs

    jobs.run(compose(arguments), console)


def pretrain(arguments: list[str], console: Console) -> None:
    """`metalearn pretrain`, with the options of `train`."""
    if any(argument.startswith("-") for argument in arguments):
        _through_hydra("pretrain", arguments, console)
        return
    from metalearn.commands import pretrain as stage

    stage.run(compose(arguments, "pretrain"), console)


def _through_hydra(job: str, arguments: list[str], console: Console) -> None:
    from metalearn.commands import sweep

    overrides, options = _split(arguments)
    if {"-m", "--multirun"} & set(options):
        check_sweep(overrides, job)
    register()
    # Hydra's own handling would print mistakes over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"metalearn {job}", *overrides, *options]  # argparse refuses any other order
    run = hydra.main(str(conf_folder()), job, version_base="1.3")(sweep.job)
    try:
        run()
    except InstantiationException:
        raise  # a bug in what was to be made, not in the overrides
    except MISTAKES as error:
        raise UsageError(explain(error, lambda: compose([], job), job)) from None
    except ValueError:
        # Optuna has no best trial to write where every trial failed; each has had its line.
        if not all("error" in record for record in sweep.records() or [{}]):
            raise
    if code := sweep.report(console):
        sys.exit(code)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and options. Raises UsageError for an option that is not Hydra's."""
    rest = iter(arguments)
    overrides: list[str] = []
    options: list[str] = []
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, given, value = argument.partition("=")
        if name not in OPTIONS:
            raise UsageError(f"no option {name}{nearest(name, OPTIONS)}; use {', '.join(OPTIONS)}")
        options.append(argument)
        if OPTIONS[name] and not given and (value := next(rest, "")):
            options.append(value)
        if name in ("-c", "--cfg") and value not in ("job", "hydra", "all"):
            raise UsageError(f"{name} needs job, hydra or all")
    return overrides, options


def evaluate(arguments: list[str], console: Console) -> None:
    """`metalearn evaluate run=<folder> [overrides]`."""
    runs = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(runs) != 1 or not runs[0]:
        raise UsageError("evaluate needs one run: metalearn evaluate run=<folder> [overrides]")
    run = Path(runs[0])
    overrides = [a for a in arguments if not a.startswith("run=")]
    overrides = [f"evaluation.{a}" if a.startswith("manifest=") else a for a in overrides]
    config = reopen(run, overrides)
    if not (run / "weights.safetensors").exists():
        raise UsageError(f"{run} has not finished; the command that started it goes on with it")
    from metalearn.commands import train as jobs
    from metalearn.commands.build import build

    jobs.evaluate_run(config, build(config, trained=True), run, console)


def compare(arguments: list[str], console: Console) -> None:
    """`metalearn compare [overrides]`; `--cfg job` prints the composed configuration."""
    overrides, options = _split(arguments)
    if options:
        if " ".join(options).replace("=", " ") not in ("--cfg job", "-c job"):
            raise UsageError(f"compare takes overrides and --cfg job, not {options[0]}")
        print(yaml.safe_dump(compose(overrides, "compare"), sort_keys=False), end="")
        return
    from metalearn.commands.compare import run

    if code := run(overrides, console):
        sys.exit(code)


def data(arguments: list[str], console: Console) -> None:
    """`metalearn data list|prepare|verify|show|manifest`."""
    action, *overrides = arguments or ["list"]
    if "=" in action:
        action, overrides = "prepare", arguments
    actions = ("list", "prepare", "verify", "show", "manifest")
    if action not in actions:
        near = nearest(action, actions)
        raise UsageError(f"no data command {action}{near}; use {', '.join(actions)}")
    if action == "list":
        if overrides:
            raise UsageError(f"data list takes nothing more, not {overrides[0]}")
        from metalearn.data.sources import state

        console.print(_options(["dataset"], state))
        console.print(STATES, style="dim", highlight=False)
        return
    from metalearn.commands import data as sets

    own = OWN.get(action, ())
    given = {n: v for n, is_, v in (a.partition("=") for a in overrides) if is_ and n in own}
    overrides = [a for a in overrides if a.partition("=")[0] not in given]
    if action == "show":
        sets.show(compose(overrides), console, **given)
        return
    if action == "manifest":
        sets.manifest(compose(overrides), console, **given)
        return
    sets.prepare(compose(overrides), console, verify=action == "verify")


def listing(arguments: list[str], console: Console) -> None:
    """`metalearn list`."""
    if unknown := [a for a in arguments if a not in GROUPS]:
        name = unknown[0]
        raise UsageError(f"no group {name}{nearest(name, GROUPS)}; use {', '.join(GROUPS)}")
    console.print(_options(arguments or GROUPS))


def _options(groups: Sequence[str], state: Callable[[str], str] | None = None) -> Table:
    """The choices of each config group with the first comments of their files."""
    table = Table("override", *(["state"] if state else []), "what it is", box=None, pad_edge=False)
    for group in groups:
        for path in sorted((conf_folder() / group).glob("[!_]*.yaml")):
            states = [state(path.stem)] if state else []
            table.add_row(f"{group}={path.stem}", *states, _description(path))
    return table


def _description(path: Path) -> str:
    """The first comment of a config file that has a line of its own."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ")
    return ""


def bench(arguments: list[str], console: Console) -> None:
    """`metalearn bench engine`."""
    from metalearn.commands.bench import bench as run

    run(arguments, console)


COMMANDS: dict[str, Callable[[list[str], Console], None]] = {
    "train": train,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "compare": compare,
    "data": data,
    "list": listing,
    "bench": bench,
}


_HYDRA = ("train", "pretrain")  # whose --help is Hydra's


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
        # A strategy's name may hold ":loop:", which rich would draw as a picture.
        COMMANDS[command](arguments, Console(emoji=False))
    except (UsageError, DataError) as error:
        print(f"metalearn: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `metalearn list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("metalearn: interrupted; the same command goes on, or starts again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
