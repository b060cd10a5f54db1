"""The engine: how T tasks run, as a value that owns what it measured, compiled and recorded."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from metalearn.engine.autotune import Autotuned, autotune, is_many, remembered
from metalearn.engine.batching import at_once, map_tasks, mean_gradient
from metalearn.engine.checks import check_foreign, check_run, unmeasured
from metalearn.engine.compiled_step import Apart, CompiledStep, structure_of, tensors_of
from metalearn.engine.cuda_graph import captured, check_capture, forgetting
from metalearn.engine.execution import Execution, kinds, setting
from metalearn.engine.frozen_body import Body, ThroughFeatures, frozen_body
from metalearn.engine.in_float64 import Check, Sample, check_check
from metalearn.engine.lite import check_kept, check_lite, through_few
from metalearn.engine.made import Made
from metalearn.engine.plan import Batching, Plan, parse
from metalearn.engine.ranks import Ranks
from metalearn.engine.strategy import ForeignStrategy, Strategy, check_algorithm, check_protocol
from metalearn.engine.task import Run, Task, TaskGradient, seeds, tasks_of
from metalearn.errors import UsageError
from metalearn.functional.precision import Precision, check_precision, computing_in
from metalearn.functional.torch_private import same_layout
from metalearn.inner.labels import check_labels
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, GradientAndMetrics, Meta

Capture = Literal["none", "graph", "compile"]
"""On a CUDA device: nothing, the meta-gradient as one graph, or its compiled pieces in one."""

_MOST_ALGORITHMS = 16  # of which an engine keeps what it made, the last ones
_MOST_STEPS = 8  # compiled steps that are kept for one setting, the last ones first


@dataclass(eq=False)
class Engine:
    """How T tasks run: batching, precision, capture. Called with a strategy and an algorithm.

    batching: `auto` measures at the first call, once for each setting, and compiles once as much
        work is done as compiling would have been worth; or see `Batching`.
    precision: see `functional.precision`. capture: of CUDA graphs, see `Capture`.
    lite: H, support examples of each task that keep their history, drawn anew at each call, for
        sets too large for all to (see `engine.lite`); None for all of them.
    ranks: the processes that share every meta-batch (see `engine.ranks`); None for this one alone.
    check: `float64` computes one task in ten calls again, and keeps in `sample` how far off it was.

    Raises UsageError for a value that is not known.
    """

    batching: Batching | Plan = "auto"
    precision: Precision = "fp32"
    capture: Capture = "none"
    lite: int | None = None
    ranks: Ranks | None = None
    check: Check = "none"
    sample: Sample = field(default_factory=Sample, init=False, repr=False)
    _made: dict[int, Made] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.batching, Plan):
            parse(self.batching)
        check_precision(self.precision)
        check_kept(self.lite)
        check_check(self.check)

    def __call__(
        self,
        strategy: Strategy | ForeignStrategy,
        algo: MetaAlgorithm,
        meta: Meta,
        episodes: Episodes,
        tasks: int | None = None,
    ) -> GradientAndMetrics:
        """The mean over T tasks of the meta-gradient, shaped like `meta`, and metrics `[T]`.

        episodes: support `[T, S, *X]`, query `[T, Q, *X]`, the same on every rank, which takes its
            share of them.
        tasks: T over all ranks, where `episodes` are this rank's alone, `ranks.work(T)`.

        Raises UsageError where the algorithm is not defined for the strategy, or cannot run so, and
        for classes that are not 0 to N - 1; RankLost where another rank has ended.
        """
        if (ranks := self.ranks) and tasks is None and (tasks := episodes.tasks):
            episodes = ranks.part(episodes)
        gradient, metrics = self._alone(strategy, algo, meta, episodes, tasks if ranks else None)
        if self.check != "none":
            plain = functools.partial(Engine, "loop")
            self.sample.take(plain, self.precision, strategy, algo, meta, episodes)
        return ranks.mean(gradient, metrics, tasks) if ranks and tasks else (gradient, metrics)

    def _alone(
        self,
        strategy: Strategy | ForeignStrategy,
        algo: MetaAlgorithm,
        meta: Meta,
        episodes: Episodes,
        of: int | None = None,
    ) -> GradientAndMetrics:
        """The same over the tasks of this process. of: T, where they are a rank's."""
        made = self._of(algo)
        tensors = tensors_of(meta, episodes)
        asked = strategy, *structure_of(episodes), *setting(algo, meta)
        for step in made.steps.get(asked, ()):
            if step.serves(*tensors):
                return step(tensors)
        if not episodes.tasks:
            raise UsageError("no episodes in the meta-batch; use training.meta_batch of 1 or more")
        check_capture(self.capture, episodes.support.device)
        check_algorithm(strategy, algo)
        if episodes.support.device.type != "cuda" or asked not in made.checked:
            # On a GPU once for each setting: looking at the labels waits for it.
            check_labels(algo, episodes.support, episodes.query)
            made.checked.add(asked)
        check_run(strategy, algo, meta, episodes, False)
        if self.lite is not None and (strategy, algo.net.modes()) not in made.gradients:
            check_lite(self.lite, strategy, algo, meta, episodes)
        if hasattr(strategy, "all_tasks"):
            check_foreign(strategy, self.precision, self.batching in ("auto", "loop", Plan()))
            return cast(ForeignStrategy, strategy).all_tasks(algo, meta, episodes)
        strategy = cast(Strategy, strategy)
        plan = self.plan(strategy, algo, meta, episodes)
        if plan.tasks is not None:
            check_run(strategy, algo, meta, episodes, True)
        random = algo.net.exact or getattr(strategy, "random", False) or self.lite is not None
        drawn = seeds(of or episodes.tasks, episodes.support.device) if random else None
        if drawn is not None and of and self.ranks is not None:  # a task's own, whatever its rank
            drawn = drawn[self.ranks.work(of)]
        tasks = tasks_of(algo, episodes, drawn)
        gradient = self._gradient(strategy, algo, meta, tasks)

        def mean(meta: Meta, tasks: Task) -> GradientAndMetrics:
            if plan.whole and plan.tasks == 0:
                return self._at_once(asked, gradient, algo, meta, tasks, plan, tensors)
            return mean_gradient(gradient, algo, meta, tasks, plan, made.compiled)

        with Apart(plan.serial), computing_in(self.precision, episodes.support.device):
            if self.capture == "none":
                return mean(meta, tasks)
            return captured(made.graphs, (asked, kinds(tensors)), mean, (meta, tasks))

    def plan(self, strategy: Strategy, algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> Plan:
        """How it would run them: as `batching` says, or as was measured, now at the latest."""
        plan = self.batching if isinstance(self.batching, Plan) else parse(self.batching)
        if plan is None:
            plan = self._chosen(strategy, algo, meta, episodes)
        return plan._replace(compile=True) if self.capture == "compile" else plan

    def autotune(
        self,
        strategy: Strategy,
        algo: MetaAlgorithm,
        meta: Meta,
        episodes: Episodes,
        coming: int | None = None,
    ) -> Autotuned:
        """The fastest plan for tasks like `episodes`, known or measured now.

        coming: tasks that are still to be run, None for many; a few are not worth compiling for.
        """
        made = self._of(algo)
        if any(batch.weight is not None for batch in episodes.parts):
            # Tasks of unequal size: every batch has other shapes, and what is measured or
            # compiled for these may never be used again.
            plan, why = unmeasured(strategy, algo, meta, episodes)
            return Autotuned(plan, {}, {"": f"tasks of unequal size: not measured{why}"})
        asked = strategy, *self._asked(algo, episodes), is_many(coming)
        if asked not in made.tuned or not made.tuned[asked].holds(coming):

            def trial(plan: Plan, tasks: int) -> Callable[[], object]:
                few = episodes.map(lambda t: t[:tasks])
                return functools.partial(self.with_plan(plan)._alone, strategy, algo, meta, few)

            alone = functools.partial(forgetting, made.graphs)
            made.tuned[asked] = autotune(
                strategy, algo, meta, episodes, self._options, coming, trial, alone
            )
        return made.tuned[asked]

    def _chosen(
        self, strategy: Strategy, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> Plan:
        """Of a call that does not say how many will follow: as many as there were, which is never
        far from the best choice. Nothing is compiled before as much was done as that takes."""
        made, options = self._of(algo), self._options
        asked = strategy, *self._asked(algo, episodes)
        if (answer := made.chosen.get(asked)) is None:
            padded = any(batch.weight is not None for batch in episodes.parts)
            answer = None if padded else remembered(strategy, algo, meta, episodes, options)
            answer = answer or self.autotune(strategy, algo, meta, episodes, episodes.tasks)
        ran = made.ran[asked] = made.ran.get(asked, 0) + episodes.tasks
        if answer.worth_after is not None and ran > answer.worth_after:
            answer = self.autotune(strategy, algo, meta, episodes, max(2 * ran, 1001))
        made.chosen[asked] = answer
        return answer.plan

    @property
    def _options(self) -> tuple[str, ...]:
        """What an answer of autotuning is for, beside the plan."""
        kept = () if self.lite is None else (f"lite={self.lite}",)
        return self.precision, self.capture, *kept

    def _asked(self, algo: MetaAlgorithm, episodes: Episodes) -> tuple:
        shapes = tuple(t.shape for t in tensors_of(Meta(init={}, hyper={}, buffers={}), episodes))
        return algo.steps, shapes, episodes.support.device, torch.get_num_threads()

    def with_plan(self, plan: Plan) -> "Engine":
        """The same engine, what it made included, that runs every strategy by `plan`."""
        engine = dataclasses.replace(self, batching=plan)
        engine._made, engine.sample = self._made, self.sample
        return engine

    def explain(self) -> str:
        """What was tried, in milliseconds a task, what was not, and why: a line each."""
        tuned = [
            (type(made.algo).__name__, type(asked[0]).__name__, answer)
            for made in self._made.values()
            for asked, answer in made.tuned.items()
        ]
        if not tuned:
            return f"batching={self.batching}: nothing was measured"
        return "\n".join(
            line
            for algo, strategy, answer in tuned
            for line in (f"{strategy} of {algo}: {answer.plan}", *answer.lines())
        )

    def _of(self, algo: MetaAlgorithm) -> Made:
        if (made := self._made.get(id(algo))) is None:
            check_protocol(algo)
            while len(self._made) >= _MOST_ALGORITHMS:
                del self._made[next(iter(self._made))]
            made = self._made[id(algo)] = Made(algo)
        return made

    def each(
        self, f: Callable[[Task, Run], Any], algo: MetaAlgorithm, tasks: Task, plan: Plan
    ) -> Iterator[tuple[int | None, Any]]:
        """`map_tasks`, with what is compiled for `algo` kept, and taken from its training."""
        return map_tasks(f, tasks, plan, self._of(algo).compiled)

    def body(self, algo: MetaAlgorithm, meta: Meta, tasks: Task) -> Body | None:
        """The part of `algo` that runs on features which no inner step changes; None without."""
        bodies, modes = self._of(algo).bodies, algo.net.modes()
        if modes not in bodies:
            bodies[modes] = frozen_body(algo, meta, tasks)
        return bodies[modes]

    def _gradient(
        self, strategy: Strategy, algo: MetaAlgorithm, meta: Meta, tasks: Task
    ) -> TaskGradient:
        known, key = self._of(algo).gradients, (strategy, algo.net.modes())
        if self.lite is not None:
            if key not in known:
                known[key] = through_few(self.lite, strategy, algo, meta, tasks)
            return known[key]
        if strategy.kind not in ("exact", "truncated"):
            return strategy.task
        if (body := self.body(algo, meta, tasks)) is None:
            return strategy.task
        return known.setdefault(key, ThroughFeatures(body, strategy.task))

    def _at_once(
        self,
        asked: Any,
        gradient: TaskGradient,
        algo: MetaAlgorithm,
        meta: Meta,
        tasks: Task,
        plan: Plan,
        given: Sequence[Tensor],
    ) -> GradientAndMetrics:
        """All tasks as one piece; where that is compiled, later calls find it by `asked`."""
        made = self._of(algo)
        run = Execution(compile=plan.compile, cache=made.compiled)
        options = {"gradient": gradient, "plan": plan}
        if not (plan.compile and self.capture == "none" and tasks.seed is None):
            return run(at_once, algo, meta, tasks, **options)
        code, tensors = run.compiled(at_once, algo, meta, tasks, **options)
        if len(tensors) == len(given) and (serves := same_layout(tensors)):
            ready = all(map(operator.is_, tensors, code.laid_out(tensors)))
            called = code.ready if ready else code
            step = CompiledStep(serves, called, plan.serial, self.precision, tensors[0].device)
            steps = made.steps.setdefault(asked, [])
            steps[:] = [step, *steps[: _MOST_STEPS - 1]]
        return code(tensors)


def plain_loop(
    strategy: Strategy | ForeignStrategy, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
) -> GradientAndMetrics:
    """`Engine(batching="loop")(strategy, algo, meta, episodes)`: what a strategy does if called."""
    return Engine("loop")(strategy, algo, meta, episodes)
