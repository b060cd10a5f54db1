"""From overrides to what a comparison does, with every mistake told before anything is done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.classifiers import Classifier
from metalearn.commands.building import searchpath
from metalearn.commands.building.arguments import at, check_choice, check_values, make
from metalearn.commands.building.config import compose, conf_files
from metalearn.commands.building.network import check_backbone, with_weights
from metalearn.commands.building.texts import check_tokenizer
from metalearn.errors import UsageError, nearest
from metalearn.evaluation.comparison.curves import check_curves
from metalearn.evaluation.comparison.plan import (
    BALANCED,
    DIRICHLET,
    FEATURES,
    PROTOTYPES,
    SCRATCH,
    TUNED,
    ComparisonPlan,
    family,
)
from metalearn.runtime.device import torch_device
from metalearn.training.stage import CLOCKS

_ONE_FOR_ALL = ("backbone", "dataset", "images", "device", "seed", "run_dir", "tracker", "outputs")
EVERY = "classifiers"
"""Among the methods: all choices of `conf/classifier`."""
_ABOVE_ZERO = (
    "sampling.concentration evaluation.timed evaluation.timed_seconds linear_probe.rate "
    "logistic_regression.strength linear_probe.steps tuning.episodes tuning.network_episodes "
    "tuning.prototype_steps tuning.copies meta.seconds meta.shots classifier_training.tasks "
    "classifier_training.rate"
)

_OF_IMAGES = ("frozen", "running", "group", "none")
_OF_TASKS = ("support", "transductive")
"""Norm policies by which an image has features of its own, and ones by which it has none."""


def plan(overrides: Sequence[str]) -> ComparisonPlan:
    """What `metalearn compare <overrides>` is to do. Raises UsageError."""
    _check_overrides(overrides, "", ("backbone.norm", "backbone.ways", "outputs"))
    offered = _offered(overrides)
    overrides = _with_named(overrides, offered)
    config = compose(overrides, "compare")
    check_values(config)
    _check(config)
    classifiers = _classifiers(config)
    headed, bare = (
        compose([*overrides, f"outputs={outputs}"], "compare")["backbone"] | _norm(config, "norm")
        for outputs in (config["episodes"]["ways"], "null")
    )
    config, _ = with_weights({**config, "backbone": headed})
    headed, bare = config["backbone"], {**bare, "sha256": config["backbone"].get("sha256")}
    for node in (headed, bare):
        check_backbone(node)
    check_tokenizer(config)
    methods = _methods(config, offered)
    _check_norm(config, methods)
    runs = {
        name: _run(config, name, headed, bare, [o for o in overrides if o.startswith("hydra.")])
        for name in methods
        if name not in classifiers and family(name) in ("meta-learning", "from scratch")
    }
    transductive = frozenset(name for name, made in classifiers.items() if made.transductive)
    return ComparisonPlan(config, headed, bare, methods, runs, transductive)


def _offered(overrides: Sequence[str]) -> dict[str, list[str]]:
    """What a method may be named after: the choices of `conf/classifier` and `conf/algorithm`,
    those of installed projects and of a search path among them."""
    _, searched = searchpath.split(overrides)
    groups = ("classifier", "algorithm")
    return {group: [path.stem for path in conf_files(group, searched)] for group in groups}


def _with_named(overrides: Sequence[str], offered: Mapping[str, list[str]]) -> list[str]:
    """`overrides`, and a choice of `conf/classifier` or a run of `conf/algorithm` for each method
    that is named after one.

    "classifiers" among the methods stands for all of them.
    """
    plain = [o for o in overrides if not o.lstrip("+").startswith("classifiers.")]
    asked = compose(plain, "compare")
    wanted, classifiers = dict.fromkeys(asked["methods"] or ()), offered["classifier"]
    if EVERY in wanted:
        wanted = dict.fromkeys([*(name for name in wanted if name != EVERY), *classifiers])
        overrides = [*overrides, f"methods=[{','.join(wanted)}]"]
    taken = {*FEATURES, *TUNED, *PROTOTYPES, *asked["classifiers"], *asked["meta"]["overrides"]}
    free = [name for name in wanted if name not in taken]
    chosen = [f"+classifier@classifiers.{n}={n}" for n in free if n in classifiers]
    trained = [n for n in free if n in offered["algorithm"] and n not in classifiers]
    runs = [f'+meta.overrides.{name}=["algorithm={name}"]' for name in trained]
    return [*chosen, *runs, *overrides]


def _classifiers(config: dict[str, Any]) -> dict[str, Classifier]:
    """Each made once, with the number of ways where it takes that. Raises UsageError."""
    for name, node in config["classifiers"].items():
        if name in FEATURES or name in TUNED or name in config["meta"]["overrides"]:
            raise UsageError(f"classifiers.{name} is not free as a name; use another")
        if isinstance(node, dict) and "ways" in node and node["ways"] is None:
            node["ways"] = config["episodes"]["ways"]
    return {name: make(node, f"classifiers.{name}") for name, node in config["classifiers"].items()}


def _norm(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"norm": config[key]} if "norm" in config["backbone"] else {}


def _check_norm(config: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Raise UsageError for a norm policy that a method of the comparison cannot have."""
    own = {name.removesuffix(SCRATCH) for name in config["meta"]["overrides"]}
    others = [name for name in methods if name.removesuffix(SCRATCH) not in own]
    if config["norm"] in _OF_TASKS and others:
        raise UsageError(
            f"norm={config['norm']} gives single images no features, which {others[0]} needs; use "
            f"{', '.join(_OF_IMAGES[:-1])} or {_OF_IMAGES[-1]}, or only methods of meta.overrides"
        )


def _check_overrides(overrides: Sequence[str], where: str, taken: Sequence[str]) -> None:
    for override in overrides:
        name = override.partition("=")[0].lstrip("+")
        for key in taken:
            if name == key or name.startswith(f"{key}."):
                use = "norm=... and scratch_norm=..." if key == "backbone.norm" else f"{key}=..."
                if where or key == "backbone.norm":
                    raise UsageError(
                        f"{where}{name} is one for all methods; use {use} of the comparison"
                    )
                raise UsageError(f"{name} is set by the comparison; use episodes.ways=...")


def _check(config: dict[str, Any]) -> None:
    torch_device(config["device"])
    for norm in ("norm", "scratch_norm"):
        check_choice(norm, config[norm], (*_OF_IMAGES, *_OF_TASKS))
    for name in _ABOVE_ZERO.split():
        if not at(config, name) > 0:
            raise UsageError(f"{name}={at(config, name)} must be above 0")
    check_curves(config)
    check_choice("meta.clock", config["meta"]["clock"], tuple(CLOCKS))
    if (jobs := config["jobs"]) < 1 or (jobs > 1 and not config["isolate"]):
        raise UsageError(f"jobs={jobs} must be 1 or more, and 1 with isolate=false")
    shots = config["episodes"]["shots"]
    _check_list("episodes.shots", shots, 1)
    if len(set(shots)) < len(shots):
        raise UsageError(f"episodes.shots={shots} names a number twice; give each once")
    sampling = config["sampling"]
    if not isinstance(sampling["queries"], list):
        sampling["queries"] = [sampling["queries"]]
    drawn = sampling["queries"]
    if not drawn or len(set(drawn)) < len(drawn):
        raise UsageError(f"sampling.queries={drawn} must name each kind once, and one or more")
    for name in drawn:
        check_choice("sampling.queries", name, (BALANCED, DIRICHLET))
    given = config["evaluation"]["network_episodes"]
    counts = given if isinstance(given, list) else [given]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in counts)
    if not whole or (isinstance(given, list) and len(given) != len(shots)):
        raise UsageError(
            f"evaluation.network_episodes={given} must be a whole number above 0, or a list of "
            f"one for each of the {len(shots)} shots"
        )
    for name in ("head_rates", "rates", "head_steps", "steps", "prototype_rates"):
        _check_list(f"tuning.{name}", config["tuning"][name], 0)


def _check_list(name: str, values: Sequence[float], low: float) -> None:
    if not values:
        raise UsageError(f"{name}=[] is empty; give it one value or more")
    if not all(low <= value < float("inf") for value in values):
        raise UsageError(f"{name}={list(values)} must be {low} or more each")


def _methods(config: Mapping[str, Any], offered: Mapping[str, list[str]]) -> list[str]:
    """The names to compare, in the order of their families. Raises UsageError."""
    meta = config["meta"]
    learned = list(meta["overrides"])
    for name in learned:
        if name in FEATURES or name in TUNED or name.endswith(SCRATCH) or not name.isidentifier():
            raise UsageError(f"meta.overrides.{name} is not free as a name; use another")
    for name in meta["scratch"]:
        if name not in learned:
            near = nearest(name, learned)
            raise UsageError(f"meta.scratch has {name}, not in meta.overrides{near}")
    classifiers = list(config["classifiers"])
    scratch = [n + SCRATCH for n in learned]
    known = [*FEATURES, "fine_tune_all", *PROTOTYPES, *classifiers, *learned, *scratch]
    unusual = {*PROTOTYPES, *scratch} - {n + SCRATCH for n in meta["scratch"]}
    usual = [name for name in known if name not in unusual]
    others = [*offered["classifier"], *offered["algorithm"]]
    choices = [*known, *(name for name in others if name not in known), EVERY]
    asked = usual if config["methods"] is None else config["methods"]
    if not asked:
        raise UsageError("methods=[] is empty; name one or more, or use methods=null for all")
    for name in asked:
        if name not in known:
            near = nearest(name, choices)
            raise UsageError(f"no method {name}{near}; use {', '.join(choices)}")
    return [name for name in known if name in asked]


def _run(
    config: Mapping[str, Any],
    name: str,
    headed: Mapping[str, Any],
    bare: Mapping[str, Any],
    hydra: Sequence[str],
) -> dict[str, Any]:
    """The configuration of the `metalearn train` of method `name`."""
    meta, shape = config["meta"], config["episodes"]
    own = meta["overrides"][name.removesuffix(SCRATCH)]
    _check_overrides([*meta["common"], *own], f"meta.overrides.{name}: ", _ONE_FOR_ALL)
    # What follows the backbone's width follows that of the comparison.
    filters = headed.get("filters")
    width = "~backbone.filters" if filters is None else f"backbone.filters={filters}"
    run = compose(
        [
            width,
            f"episodes.ways={shape['ways']}",
            f"episodes.shots={meta['shots']}",
            f"episodes.queries={shape['queries']}",
            f"training.seconds={meta['seconds']}",
            f"training.clock={meta['clock']}",
            f"evaluation.seed={config['evaluation']['seed']}",
            f"evaluation.split={config['evaluation']['split']}",
            *hydra,
            *meta["common"],
            *own,
        ]
    )
    if run.get("task", "classification") != "classification":
        raise UsageError(
            f"meta.overrides.{name}: compare is for classification; use metalearn train "
            f"task={run['task']}"
        )
    scratch = {}
    if name.endswith(SCRATCH):
        scratch = {"weights": None, "sha256": None, **_norm(config, "scratch_norm")}
    node = bare if run["outputs"] is None else headed
    same = {key: config[key] for key in ("dataset", "images", "tracker", "seed", "device")}
    folder = str(Path(config["run_dir"]) / name)
    backbone = {key: value for key, value in {**node, **scratch}.items() if key in node}
    return {**run, **same, "backbone": backbone, "run_dir": folder, "name": name}
