"""What an engine keeps of the algorithms that it ran."""

from dataclasses import dataclass, field
from typing import Any

from metalearn.engine.autotune import Autotuned
from metalearn.engine.compiled_step import CompiledStep
from metalearn.engine.compiler import Cache
from metalearn.engine.cuda_graph import Graphs
from metalearn.engine.frozen_body import Body
from metalearn.engine.task import TaskGradient
from metalearn.inner.protocol import MetaAlgorithm


@dataclass
class Made:
    """What an engine made for one algorithm, which it holds so that its id stays its own. ran: how
    many tasks, of each kind for which it has chosen a plan."""

    algo: MetaAlgorithm
    compiled: Cache = field(default_factory=dict)
    graphs: Graphs = field(default_factory=dict)
    steps: dict[Any, list[CompiledStep]] = field(default_factory=dict)
    tuned: dict[Any, Autotuned] = field(default_factory=dict)
    chosen: dict[Any, Autotuned] = field(default_factory=dict)
    ran: dict[Any, int] = field(default_factory=dict)
    checked: set[Any] = field(default_factory=set)
    bodies: dict[Any, Body | None] = field(default_factory=dict)
    gradients: dict[Any, TaskGradient] = field(default_factory=dict)
