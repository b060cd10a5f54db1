"""A finished run, opened to adapt to a user's own classes: without the data it was trained on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn import tree
from metalearn.commands.building import words
from metalearn.commands.building.config import reopen
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.meta_training import read_method
from metalearn.commands.building.network import build_module, features
from metalearn.commands.building.trial import check_norms
from metalearn.data import ImageDataset, Mixture
from metalearn.data.folder import Look
from metalearn.data.own_images import OwnClasses, look_of, read_classes
from metalearn.episodes import ImageTransform
from metalearn.errors import UsageError
from metalearn.evaluation.own_images.adapter import Adapter
from metalearn.evaluation.own_images.calibration import Calibration
from metalearn.evaluation.own_images.kept import Kept, read_kept
from metalearn.runtime.device import torch_device
from metalearn.training.folder import load_weights
from metalearn.training.run import finished
from metalearn.types import Batch, Episodes

Say = Callable[[str], None]


class Asked(NamedTuple):
    """The arguments of a command on a run: its own by name, the packages to trust, and overrides of
    the run's configuration."""

    own: dict[str, str]
    trust: list[str]
    overrides: list[str]


def asked(arguments: Sequence[str], command: str, names: Collection[str]) -> Asked:
    """Raises UsageError for one that is given twice, or empty, or is no `name=value`."""
    own, overrides = dict[str, str](), list[str]()
    trust, rest = words.trusted(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not equals:
            known = ", ".join(f"{n}=" for n in names)
            raise UsageError(f"{command} takes {known} and overrides, not {argument}")
        if name in names:
            if name in own or not value:
                raise UsageError(f"{command} needs one {name}=<...>, not {argument}")
            own[name] = value
        elif "." in name or name.lstrip("+") in ("device", "seed"):
            overrides.append(argument)
        else:
            raise words.unknown(name, command, names)
    return Asked(own, trust, overrides)


@dataclass(frozen=True)
class Trained:
    """A run's configuration, its result, and how it saw its images: `look`, then `transform`.

    kept: what `metalearn try` leaves beside the weights, None elsewhere.
    """

    run: Path
    config: dict[str, Any]
    result: Mapping[str, Any]
    look: Look
    transform: ImageTransform
    kept: Kept | None

    @property
    def steps(self) -> int | None:
        """Inner steps that were asked for, None for the algorithm's own."""
        return self.config["evaluation"]["steps"]

    def support(self, folder: str | None, say: Say) -> tuple[OwnClasses, Calibration | None]:
        """The classes in `folder`, or those that the run keeps with what these were calibrated to.

        Raises UsageError, or DataError.
        """
        if folder is not None:
            own = read_classes(Path(folder).expanduser(), self.look)
            for line in (*own.notes, *own.images.broken):
                say(line)
            return own, None
        if self.kept is None:
            raise UsageError(
                f"{self.run} knows no classes of yours; give support=<folder of class folders>"
            )
        return self.kept.classes, self.kept.calibration

    def adapter(self, ways: int, shots: int, queries: int | None = None) -> Adapter:
        """The network and algorithm with what was meta-learned, for tasks of so many classes and
        examples in all. queries: asked together, None for one.

        Raises UsageError where they cannot take them.
        """
        config, outputs = self.config, self.config["outputs"]
        if outputs is not None and ways > outputs:
            raise UsageError(
                f"there are {ways} classes, but the head of {self.run} has {outputs} outputs; give "
                f"{outputs} classes or fewer, or a run of an algorithm that has no head of its own "
                "(protonet, metric, proto_maml)"
            )
        device = torch_device(config["device"])
        backbone = {**config["backbone"], "weights": None, "rename": None}
        episodes = config["episodes"] if outputs else {**config["episodes"], "ways": ways}
        training = config["training"] if outputs else {**config["training"], "ways": None}
        method = read_method(
            {**config, "backbone": backbone, "episodes": episodes, "training": training}
        )
        look, seed = self.look, config["seed"]
        shape = self.transform.shape((look.channels or 3, look.size, look.size))
        example = torch.zeros(2, *shape)
        module, _ = build_module(backbone, shape, seed, None, example)
        self._check_norms(module, example, shots, queries)
        module, adapting = method.task.network(module)
        size = features(module, example) if "features" in method.parameters else None
        algo = method.algo(module, adapting, size)
        method.check_fit(algo)
        like = tree.map_meta(lambda t: t.to(device), algo.init())
        path, sha256 = self.run / "weights.safetensors", self.result.get("weights_sha256")
        meta = load_weights(path, like, sha256)
        steps = algo.steps if self.steps is None else self.steps
        return Adapter(algo, meta, self.transform, steps, device)

    def _check_norms(
        self, module: torch.nn.Module, x: torch.Tensor, shots: int, queries: int | None
    ) -> None:
        def of(count: int) -> Batch:
            return Batch(torch.zeros(1, count), torch.zeros(1, count, dtype=torch.int64))

        check_norms(module, x, [Episodes(of(shots), of(queries or 1))])


def open_run(
    named: str | None, asked: Asked, command: str, say: Say, invert: bool | None = None
) -> Trained:
    """The finished run in the folder `named`. invert: of images, other than the run's data set.

    Raises UsageError where it is none, or has no images.
    """
    if named is None:
        raise UsageError(f"{command} needs a run: metalearn {command} run=<folder> ...")
    run = Path(named).expanduser()
    config = reopen(run, asked.overrides, asked.trust, say)
    if not (run / "weights.safetensors").exists():
        raise UsageError(f"{run} has not finished; the command that started it goes on with it")
    if (task := config.get("task", "classification")) != "classification":
        raise UsageError(f"{command} is for runs that classify, and {run} is of task={task}")
    result = finished(run) or {}
    shape = result.get("image_shape") or _shape(run, config)
    look = look_of(config["dataset"], shape)
    if invert is not None:
        look = look._replace(invert=invert)
    images = config.get("images") or {}
    return Trained(run, config, result, look, ImageTransform(**images), read_kept(run))


def _shape(run: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the images of an older run, whose result does not tell: its data set does."""
    dataset = read_data(config).dataset
    if not isinstance(dataset, ImageDataset | Mixture):
        raise UsageError(f"{run} was not trained on images, and cannot take yours")
    return dataset.image_shape
