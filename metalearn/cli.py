"""`metalearn <command> [hydra overrides]`."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from metalearn.data import DataError
from metalearn.errors import UsageError
from metalearn.training.settings import EpisodeSettings, EvaluationSettings, TrainingSettings

USAGE = """usage: metalearn <command> [overrides]

  train      train, validate and test; `-m` sweeps over comma-separated values
  evaluate   measure a run again: run=<folder> [evaluation.episodes=1000 ...]
  data       list | prepare [dataset=...] | verify [dataset=...]
  list       algorithms, backbones, data sets, strategies, experiments

Overrides are Hydra's: algorithm=protonet dataset=omniglot training.steps=2000.
`metalearn train --cfg job` prints the composed configuration."""

GROUPS = ("algorithm", "gradient", "inner", "backbone", "dataset", "outer", "tracker", "experiment")


def conf_folder() -> Path:
    """Where `conf/` lies: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register_schema() -> None:
    """Give Hydra the typed part of the configuration."""
    schema = {
        "seed": 0,
        "episodes": EpisodeSettings,
        "training": TrainingSettings,
        "evaluation": EvaluationSettings,
    }
    ConfigStore.instance().store(name="schema", node=schema)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of one run as plain values. Raises UsageError."""
    register_schema()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            return plain(hydra.compose("train", list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(_one_line(error)) from None


def plain(config: DictConfig) -> dict[str, Any]:
    """`config` resolved to dicts, lists and scalars, with its run folder filled in."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    values.pop("hydra", None)
    if values["run_dir"] is None:
        values["run_dir"] = _default_folder(values)
    return values


def _default_folder(config: dict[str, Any]) -> str:
    """`runs/<name>-seed<seed>-<hash>`, so that the same command finds its run again."""
    from metalearn.training.folder import config_hash

    def last(node: str) -> str:
        return str(config[node]["_target_"]).rpartition(".")[2].lower()

    episodes = config["episodes"]
    shape = f"{episodes['ways']}w{episodes['shots']}s"
    name = config["name"] or f"{last('algorithm')}-{last('dataset')}-{shape}"
    return f"runs/{name}-seed{config['seed']}-{config_hash(config)[:8]}"


def run_train(config: dict[str, Any], console: Console) -> float | None:
    """One training job; the value is what a sweep maximises."""
    from metalearn import jobs
    from metalearn.build import build
    from metalearn.training.folder import claim, locked

    built = build(config)
    folder = claim(Path(config["run_dir"]), config, config["resume"])
    with locked(folder):
        if (result := jobs.finished(folder)) is not None:
            return jobs.show_finished(folder, result, console)
        return jobs.train(config, built, folder, console)


def train(arguments: list[str], console: Console) -> None:
    """`metalearn train`. Options of Hydra (-m, --cfg, ...) go through Hydra's own main."""
    if not any(argument.startswith("-") for argument in arguments):
        run_train(compose(arguments), console)
        return
    register_schema()

    @hydra.main(config_path=str(conf_folder()), config_name="train", version_base="1.3")
    def job(config: DictConfig) -> float | None:
        return run_train(plain(config), Console())

    # Before the jobs change anything: what Hydra would print over several lines.
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    sys.argv = ["metalearn train", *arguments]
    job()


def evaluate(arguments: list[str], console: Console) -> None:
    """`metalearn evaluate run=<folder> [overrides]`."""
    from metalearn import jobs
    from metalearn.build import build

    runs = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(runs) != 1:
        raise UsageError("evaluate needs one run: metalearn evaluate run=<folder> [overrides]")
    run = Path(runs[0])
    path = run / "config.yaml"
    if not path.exists():
        raise UsageError(f"{run} is not a run folder (no config.yaml); see `ls runs`")
    config = OmegaConf.create(yaml.safe_load(path.read_text()))
    for name, settings in (("episodes", EpisodeSettings), ("evaluation", EvaluationSettings)):
        config[name] = OmegaConf.merge(OmegaConf.structured(settings), config[name])
    OmegaConf.set_struct(config, True)
    overrides = [a for a in arguments if not a.startswith("run=")]
    try:
        values = plain(OmegaConf.merge(config, OmegaConf.from_dotlist(overrides)))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UsageError(_one_line(error)) from None
    if not (run / "weights.safetensors").exists():
        raise UsageError(f"{run} has not finished; the command that started it goes on with it")
    jobs.evaluate_run(values, build(values), run, console)


def data(arguments: list[str], console: Console) -> None:
    """`metalearn data list|prepare|verify`."""
    from metalearn import jobs

    action, *overrides = arguments or ["list"]
    match action:
        case "list":
            console.print(_options(["dataset"]))
        case "prepare" | "verify":
            jobs.prepare_data(compose(overrides), console, verify=action == "verify")
        case _:
            raise UsageError(f"data {action} is not known; use list, prepare or verify")


def listing(arguments: list[str], console: Console) -> None:
    """`metalearn list`."""
    if unknown := [a for a in arguments if a not in GROUPS]:
        raise UsageError(f"no group {unknown[0]}; use {', '.join(GROUPS)}")
    console.print(_options(arguments or GROUPS))


def _options(groups: Sequence[str]) -> Table:
    """The choices of each config group with the first comment of their files."""
    table = Table("override", "choices")
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for group in groups:
            table.add_row(group, "\n".join(loader.get_group_options(group)))
    return table


def _one_line(error: Exception) -> str:
    """The first line of Hydra's or OmegaConf's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0]
    details = {part.partition(":")[0]: part.partition(":")[2].strip() for part in lines[1:]}
    if details.get("full_key"):
        text = f"{details['full_key']}: {text}"
    if text.startswith(("Could not override", "In '")) and len(lines) > 1:
        text = f"{text.rstrip('.')}: {lines[1]}"
    return text


COMMANDS: dict[str, Callable[[list[str], Console], None]] = {
    "train": train,
    "evaluate": evaluate,
    "data": data,
    "list": listing,
}


def main() -> None:
    """Entry point. A user's mistake is one line on standard error and exit code 2."""
    command, *arguments = sys.argv[1:] or ["help"]
    if command in ("help", "-h", "--help"):
        print(USAGE)
        return
    try:
        if command not in COMMANDS:
            raise UsageError(f"no command {command}; use {', '.join(COMMANDS)}")
        COMMANDS[command](arguments, Console())
    except (UsageError, DataError) as error:
        print(f"metalearn: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
