"""A network, or adapters in it, fine-tuned on each task by the prototypes of its support set.

    c_n = mean of f(x) over the support examples of class n
    L = CE over the queries x' of  cos(f(x'), c_n) / temperature,   x' support images, augmented

f moves in both places. All weights: P>M>F, with Adam and a rate that few validation episodes
choose, 0 among the rates. Hu, Li, Stuehmer, Kim, Hospedales: Pushing the Limits of Simple Pipelines
for Few-Shot Learning: External Data and Fine-Tuning Make a Difference, 2022, section 3.3.

Adapters with the support set as its own queries: TSA, Li, Liu, Bilen 2022, section 3.3. FiLM: as
FiT adapts (Shysheya et al. 2022), with the loss above in the place of its Gaussian classes.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import chosen
from metalearn.backbones import adaptation
from metalearn.classifiers import Cosine
from metalearn.evaluation.comparison.methods import Measured, on_images, tuned
from metalearn.evaluation.comparison.setting import Setting
from metalearn.evaluation.on_features import Choice
from metalearn.evaluation.protocol import evaluate
from metalearn.functional import PureModule, pure
from metalearn.functional.outputs import tensor_of
from metalearn.inner.adaptive import adam
from metalearn.inner.protocol import EXACT, MetaAlgorithm
from metalearn.inner.rules import InnerRule, at_step, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Params

PROTOTYPES, COUNTS = "prototypes", "prototypes.counts"


@dataclass(frozen=True, eq=False)
class PrototypeTuning:
    """Every weight adapts, or those of `adapting`, and a query is of the nearest prototype.

    module: from `[B, *X]` to features `[B, D]`. copies: blocks of as many examples behind the
    support set (`episodes.augmentation.WithCopies`), of which each step takes the next as queries;
    0: the support set is its own. temperature: 1 / 10 in P>M>F.
    """

    module: nn.Module
    steps: int = 50
    rule: InnerRule = sgd(0.1)
    adapting: Collection[str] | None = None
    copies: int = 0
    temperature: float = 0.1
    loss: Loss = cross_entropy
    kinds: tuple[Kind, ...] = EXACT
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)
    of_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))

    def init(self) -> Meta:
        """The module's own weights."""
        weights = tree.clone(self.net.params)
        hyper = self.rule.hyper(chosen(weights, self.adapting), self.steps)
        return Meta(init=weights, hyper=hyper, buffers=tree.clone(self.net.buffers))

    def begin(self, meta: Meta, given: Given) -> Params:
        """The weights as they are."""
        return chosen(meta["init"], self.adapting)

    def _block(self, support: Batch, number: int | Tensor) -> Batch:
        """Block `number` of the support examples, 0 the images as they are."""
        return support.map(lambda t: at_step(t.unflatten(0, (1 + self.copies, -1)), number))

    def _features(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        weights = {**meta["buffers"], **meta["init"], **fast}
        return tensor_of(self.net.apply(weights, x)).flatten(1)

    def _fitted(self, meta: Meta, fast: Params, given: Given) -> Params:
        support = self._block(given.support, 0)
        features = self._features(meta, fast, support.x)
        state = _COSINE.fit({}, support._replace(x=features))
        return {PROTOTYPES: state["prototypes"], COUNTS: state["counts"]}

    def _logits(self, fitted: Params, features: Tensor) -> Tensor:
        state = {"prototypes": fitted[PROTOTYPES], "counts": fitted[COUNTS]}
        return Cosine(self.temperature, of_unit_length=False).logits({}, state, features)

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """L of the next block."""
        number = 1 + step % self.copies if self.copies else 0
        queries, fitted = self._block(given.support, number), self._fitted(meta, fast, given)
        return self.loss(self._logits(fitted, self._features(meta, fast, queries.x)), queries)[0]

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """The weights, and the prototypes `[S, D]` that they give."""
        return {**fast, **self._fitted(meta, fast, given)}

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The loss of the queries."""
        return self.loss(self.predict(meta, fast, query.x), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss at the end alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        """Logits `[B, S]` for `x` `[B, *X]`: one column a class, unused columns lowest."""
        weights = {n: t for n, t in fast.items() if n not in (PROTOTYPES, COUNTS)}
        return self._logits(fast, self._features(meta, weights, x))


_COSINE = Cosine(of_unit_length=False)
_NOTES = {
    "pmf": "all weights, queries are augmented support images (P>M>F, Hu et al. 2022)",
    "tsa": "residual adapters and a linear map of the features (TSA, Li et al. 2022; Adam there "
    "is Adadelta)",
    "film": "scale and shift of the norms, queries are augmented support images (as FiT, Shysheya "
    "et al. 2022, adapts)",
}


def prototype_tuning(setting: Setting, method: str) -> Measured:
    """ "pmf", "tsa" or "film": what adapts, by a rate that episodes of the val split choose."""
    grid, ways = setting.plan.config["tuning"], setting.plan.config["episodes"]["ways"]
    steps = grid["prototype_steps"]
    module, adapting = adapted(setting.bare().net, method, setting.shape)
    copies = grid["copies"] if setting.augmentation is not None and method != "tsa" else 0
    setting = replace(setting, copies=copies)

    def algo(rate: float) -> PrototypeTuning:
        return PrototypeTuning(module, steps, adam(rate), adapting, copies)

    meta = tree.map_meta(lambda t: t.to(setting.device), algo(0.0).init())

    def steps_of(shots: int) -> tuple[MetaAlgorithm, int, Choice]:
        manifest = setting.images(shots, "val", grid["network_episodes"])

        def tried(rate: float) -> np.ndarray:
            at, on = (steps if rate else 0,), setting.device
            report = evaluate(algo(rate), meta, manifest, device=on, at=at, together=1)
            return report.by_step["accuracy"].mean(0)

        choice = tuned(tried, grid["prototype_rates"], [steps])
        return algo(choice.rate), steps if choice.rate else 0, choice

    measured = on_images(setting, algo(0.0), meta, steps_of)
    measured.notes.append(f"{steps} steps of Adam by cosine to {ways} prototypes: {_NOTES[method]}")
    return measured


def adapted(
    net: PureModule, method: str, shape: tuple[int, ...]
) -> tuple[nn.Module, Collection[str] | None]:
    """The module of `net`, which gives features of examples of `shape`, with what `method` puts in;
    and the names of the weights that adapt, None for all. Raises UsageError."""
    if method == "pmf":
        return net.module, None
    how = adaptation.film() if method == "film" else adaptation.tsa(align=False)
    module = how.prepare(net.module, None)
    names = how.adapting(module, None) or frozenset()
    if method == "film":
        return module, names
    like = next(iter(net.params.values()))
    with torch.no_grad():
        x = like.new_zeros(1, *shape)
        width = tensor_of(net.apply({**net.params, **net.buffers}, x)).flatten(1).shape[1]
    align = nn.Linear(width, width, bias=False, dtype=like.dtype)
    nn.init.eye_(align.weight)
    whole = nn.Sequential(OrderedDict(body=module, flat=nn.Flatten(), align=align))
    return whole, {*(f"body.{name}" for name in names), "align.weight"}
