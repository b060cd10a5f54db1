"""An algorithm around another one: what it does not change is the other's."""

from torch import Tensor

from metalearn.functional import PureModule
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import InnerRule
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Outputs, Params


class Around:
    """A base for a dataclass with a field `algo`, whose methods all these are."""

    algo: MetaAlgorithm

    @property
    def steps(self) -> int:
        return self.algo.steps

    @property
    def rule(self) -> InnerRule:
        return self.algo.rule

    @property
    def net(self) -> PureModule:
        return self.algo.net

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self.algo.kinds

    @property
    def transductive(self) -> bool:
        return self.algo.transductive

    def init(self) -> Meta:
        return self.algo.init()

    def begin(self, meta: Meta, given: Given) -> Params:
        return self.algo.begin(meta, given)

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        return self.algo.inner_loss(meta, fast, given, step)

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        return self.algo.finish(meta, fast, given, step)

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        return self.algo.outer_loss(meta, fast, query)

    def step_weights(self, meta: Meta) -> Tensor | None:
        return self.algo.step_weights(meta)

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Outputs:
        return self.algo.predict(meta, fast, x)
