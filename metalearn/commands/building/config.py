"""From overrides to the configuration of one run, as plain values."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metalearn.commands.building import searchpath
from metalearn.commands.building.composer import composed
from metalearn.commands.building.mistakes import explain, unknown_choice
from metalearn.commands.building.schemas import SCHEMAS
from metalearn.commands.building.search import SearchSettings
from metalearn.commands.building.searchpath import conf_folder
from metalearn.commands.building.trust import check_trust
from metalearn.errors import UsageError, nearest
from metalearn.training.folder import config_hash, read_config
from metalearn.training.old_configs import PLACES, placed
from metalearn.training.sources import changed, sources

MISTAKES = (HydraException, OmegaConfBaseException)
# What Hydra raises, or warns of, where a config group is null or a config folder is missing.
_COMPOSING = (*MISTAKES, ValueError, UserWarning)


def _check_keys(values: Mapping[str, Any], settings: type, job: str, prefix: str = "") -> None:
    known = {prefix + part.name: part.type for part in fields(settings)}
    for key, value in values.items():
        name = prefix + key
        if name not in known:
            raise UsageError(f"no key {name}{nearest(name, known)}; see metalearn {job} --cfg job")
        if is_dataclass(section := known[name]):
            _check_keys(value, section, job, f"{name}.")  # type: ignore[arg-type]


def conf_files(group: str, override: str | None = None) -> list[Path]:
    """The choices of a config group by name: ours, those of installed projects and of an override
    `hydra.searchpath=[...]`. Raises UsageError for a folder that is not there."""
    folders = [conf_folder(), *searchpath.folders(override)]
    found = [path for folder in folders for path in (folder / group).glob("[!_]*.yaml")]
    # As Hydra: of two of one name, that of the first folder.
    return sorted({p.stem: p for p in reversed(found)}.values(), key=lambda path: path.stem)


def register() -> None:
    """Give Hydra the types of the configuration, the config groups of installed projects, and the
    options of a search."""
    searchpath.register()
    _store_types()


@functools.cache
def _store_types() -> None:
    """Once a process: it takes a fifth of the time of a composition."""
    store = ConfigStore.instance()
    for job, settings in SCHEMAS.items():
        store.store(name=f"{job}_schema", node=settings)
    Plugins.instance()  # before, or a plugin of this name that is installed would come after
    store.store(group="hydra/sweeper", name="optuna", node=SearchSettings, provider="metalearn")


def compose(overrides: Sequence[str], job: str = "train") -> dict[str, Any]:
    """The configuration of one run of `metalearn <job>`. Raises UsageError."""
    with composer(job) as compose_one:
        return compose_one(overrides)


@contextmanager
def composer(job: str) -> Iterator[Callable[[Sequence[str]], dict[str, Any]]]:
    """`compose` for many lists of overrides."""

    def compose_one(overrides: Sequence[str]) -> dict[str, Any]:
        with explaining(overrides, job):
            return plain(composed(job, overrides), job)

    with on_conf():
        yield compose_one


def check_sweep(overrides: Sequence[str], job: str = "train") -> None:
    """Raise UsageError where a member of a sweep cannot be composed."""
    with composing(overrides, job):
        loader = GlobalHydra.instance().config_loader()
        loader.load_configuration(job, list(overrides), RunMode.MULTIRUN)
        for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
            options = loader.get_group_options(override.key_or_group)
            if options and override.is_discrete_sweep():
                for choice in override.sweep_string_iterator():
                    if choice not in (*options, "null"):
                        raise UsageError(unknown_choice(override.key_or_group, choice, options))


@contextmanager
def composing(overrides: Sequence[str], job: str = "train") -> Iterator[None]:
    """Hydra on our `conf/`, with every mistake in `overrides` one line."""
    with on_conf(), explaining(overrides, job):
        yield


@contextmanager
def on_conf() -> Iterator[None]:
    """Hydra on our `conf/`."""
    register()
    with (
        hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("error", message="provider=.* is not available")
        yield


@contextmanager
def explaining(overrides: Sequence[str], job: str) -> Iterator[None]:
    """Every mistake in `overrides` one line."""
    try:
        yield
    except UsageError:
        raise
    except _COMPOSING as error:
        raise UsageError(explain(error, lambda: _known(overrides, job), job)) from None


def _known(overrides: Sequence[str], job: str) -> dict[str, Any]:
    """The configuration that the choices of groups alone give."""
    loader = GlobalHydra.instance().config_loader()
    choices = []
    for text in overrides:
        name, _, value = text.partition("=")
        if value in loader.get_group_options(name.partition("@")[0].lstrip("+")):
            choices.append(text)
    try:
        config = hydra.compose(job, choices)
    except MISTAKES:  # among them a group that this job does not have
        config = hydra.compose(job)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


def plain(config: DictConfig, job: str = "train") -> dict[str, Any]:
    """`config` resolved to dicts, lists and scalars, with its run folder filled in, and the paths
    of its data absolute."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    values.pop("hydra", None)
    values["sources"] = sources(values)
    # `+key=` gets past the types: what a config group takes is for its target to say.
    _check_keys(values, SCHEMAS[job], job)
    for name in ("mean", "std"):  # lists of floats, which one number is short for
        given = values["images"].get(name)
        numbers: list[Any] = given if isinstance(given, list) else [given]
        if numbers and all(type(number) in (int, float) for number in numbers):
            values["images"][name] = [float(number) for number in numbers]
    if values["run_dir"] is None:
        values["run_dir"] = _default_folder(values, job)
    return placed(values)


def _default_folder(config: Mapping[str, Any], job: str) -> str:
    """`runs/<name>-seed<seed>-<hash>`, so that the same command finds its run again."""

    def last(node: str) -> str:
        return str(config[node]["_target_"]).rpartition(".")[2].lower()

    if config["name"]:
        name = config["name"]
    elif job == "pretrain":
        name = f"pretrain-{config['backbone'].get('name') or last('backbone')}-{last('dataset')}"
    else:
        ways, shots = config["episodes"]["ways"], config["episodes"]["shots"]
        one = isinstance(shots, int) and not (config.get("sampling") or {}).get("sizes")
        what = last("algorithm") if job == "train" else job
        name = f"{what}-{last('dataset')}-{ways}w{f'{shots}s' if one else ''}"
    return f"runs/{name}-seed{config['seed']}-{config_hash(config)[:8]}"


def reopen(
    run: Path,
    overrides: Sequence[str],
    trust: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The configuration that the run in folder `run` was trained with, then `overrides`.

    trust: packages beside this one and torch that the run may name, "true" for all. tell: of code
    that was edited since.

    Raises UsageError where `run` is no run folder, for an override of a whole group or of the data
    set, but for where it lies, or for a target that is not trusted.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run} is not a run folder (no config.yaml); see `ls runs`")
    if (run / "backbone.safetensors").is_file():
        raise UsageError(
            f"{run} is a run of pretrain, which has no episodes to adapt to; use it in "
            f"metalearn train backbone.weights={run}"
        )
    held = read_config(path)
    try:
        config = OmegaConf.merge(OmegaConf.structured(SCHEMAS["train"]), held)
        OmegaConf.set_struct(config, True)
    except (*MISTAKES, ValueError) as error:
        raise UsageError(f"{path} is damaged: {explain(error, dict)}") from None
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            key, value = override.key_or_group, override.value()
            if key.partition(".")[0] == "dataset" and key.rpartition(".")[2] not in PLACES:
                raise UsageError(
                    "evaluate keeps the run's data set, whose test classes are unseen; "
                    "dataset.root=<folder> or dataset.archive=<file> says where it is now"
                )
            if override.is_sweep_override() or override.is_delete():
                raise UsageError(f"evaluate takes single values, not {override.input_line}")
            if OmegaConf.is_dict(OmegaConf.select(config, key)) and not isinstance(value, dict):
                raise UsageError(f"evaluate keeps the run's {key}; override values inside it")
            OmegaConf.update(config, key, value, force_add=override.is_add())
        named = OmegaConf.to_container(config, resolve=True)
        check_trust(named, trust, path)  # type: ignore[arg-type]
        values = plain(config)  # type: ignore[arg-type]
        if edited := changed(held.get("sources"), values["sources"]):
            tell(f"{edited} since this run was trained; it is measured with the code as it is now")
        return values
    except MISTAKES as error:
        known: Any = OmegaConf.to_container(config)
        raise UsageError(explain(error, lambda: known)) from None
