"""Random few-shot tasks and networks, and how far two dicts of tensors are apart."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from metalearn import Batch, Episodes
from metalearn.engine import Engine


def on(strategy, batching="loop", precision="fp32", capture="none"):
    """`strategy` on an engine: called as (algo, meta, episodes)."""
    return functools.partial(Engine(batching, precision, capture), strategy)


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that no test depends on what ran before."""
    return torch.Generator().manual_seed(seed)


def network(build: Callable[[], nn.Module], seed: int = 0, dtype=torch.float64) -> nn.Module:
    """`build()` with every parameter and running average away from its usual start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.add_(0.5 * torch.rand_like(buffer) - 0.3)
    return module.to(dtype)


def classification(
    tasks: int = 3,
    ways: int = 3,
    shots: int = 2,
    queries: int = 6,
    shape: tuple[int, ...] = (1, 16, 16),
    seed: int = 0,
    dtype=torch.float64,
) -> Episodes:
    """Noise with labels: every class has `shots` support examples, in a shuffled order."""
    g = generator(seed)
    label = torch.arange(ways).repeat_interleave(shots)

    def batch(labels: list[Tensor]) -> Batch:
        y = torch.stack(labels)
        x = torch.randn(*y.shape, *shape, generator=g, dtype=torch.float64)
        shift = y.view(*y.shape, *[1] * len(shape)) * 0.5
        return Batch((x + shift).to(dtype), y)

    support = [label[torch.randperm(len(label), generator=g)] for _ in range(tasks)]
    query = [torch.randint(ways, (queries,), generator=g) for _ in range(tasks)]
    return Episodes(batch(support), batch(query))


def regression(
    tasks: int = 3, size: int = 6, inputs: int = 4, outputs: int = 2, seed: int = 0
) -> Episodes:
    """Noise with real targets."""
    g = generator(seed)

    def batch() -> Batch:
        x = torch.randn(tasks, size, inputs, generator=g, dtype=torch.float64)
        return Batch(x, torch.randn(tasks, size, outputs, generator=g, dtype=torch.float64))

    return Episodes(batch(), batch())


def task(episodes: Episodes, index: int) -> Episodes:
    """One task without T."""
    return episodes.map(lambda t: t[index])


def randomised(tensors: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Rates that differ in every entry, between 0.05 and 0.35."""
    g = generator(seed)
    return {
        n: 0.05 + 0.3 * torch.rand(t.shape, generator=g, dtype=t.dtype) for n, t in tensors.items()
    }


def distance(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """The norm of got - want over that of want; the names and shapes have to be the same."""
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in want.items()}
    if not want:
        return 0.0
    off = torch.stack([(got[n] - want[n]).norm() for n in want]).norm()
    size = torch.stack([t.norm() for t in want.values()]).norm()
    assert size > 1e-6, "the reference is zero: nothing would be compared"
    return float(off / size)


def apart(got: Mapping, want: Mapping) -> float:
    """The larger of the distances of `init` and of `hyper`."""
    assert set(got) == set(want) == {"init", "hyper"}
    return max(distance(got[part], want[part]) for part in want)
