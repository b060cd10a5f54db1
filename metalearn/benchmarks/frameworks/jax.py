"""JAX, compiled: `vmap` over the tasks in one program, or one unrolled task at a time.

vmap: `jit(vmap(grad(unrolled loss)))`, NCHW, what its users write first.
loop: `jit(grad(unrolled loss))` of one task, NHWC, called once a task: faster on a CPU, where
    `vmap` makes grouped convolutions.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import NotInstalled, Runner, jax_models
from metalearn.benchmarks.models import episodes, module

Task = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def prepare(cell: Cell, device: str, variant: Literal["vmap", "loop"]) -> Runner:
    """The meta-step of one variant. Raises NotInstalled where JAX does not know the device."""
    found = jax.default_backend()
    if (found == "gpu") != (device == "cuda"):
        raise NotInstalled(f"the installed JAX runs on {found}, not on {device}")
    jax.clear_caches()
    # On a GPU JAX would take TF32 for float32.
    jax.config.update("jax_default_matmul_precision", "highest")
    layout = "NHWC" if variant == "loop" else "NCHW"
    net = jax_models.network(cell.model, layout)
    loss = jax_models.mean_squared if cell.model == "mlp" else jax_models.cross_entropy
    weights = jax_models.arrays(
        {n: p.detach() for n, p in module(cell.model).named_parameters()}, layout
    )

    def unrolled(weights: dict[str, jax.Array], task: Task) -> jax.Array:
        x, y, query_x, query_y = task
        fast = weights
        for _ in range(cell.steps):
            grads = jax.grad(lambda w: loss(net(w, x), y))(fast)
            fast = jax.tree.map(lambda w, g: w - cell.rate * g, fast, grads)
        return loss(net(fast, query_x), query_y)

    @jax.jit
    def batched(weights: dict[str, jax.Array], tasks: Task) -> dict[str, jax.Array]:
        grads = jax.vmap(jax.grad(unrolled), (None, 0))(weights, tasks)
        return jax.tree.map(lambda g: g.mean(0), grads)

    @jax.jit
    def one_more(weights: dict[str, jax.Array], total: dict[str, jax.Array], task: Task):
        grads = jax.grad(unrolled)(weights, task)
        return jax.tree.map(lambda t, g: t + g / cell.tasks, total, grads)

    tasks = _tasks(cell, layout)
    one_by_one = [tuple(a[i] for a in tasks) for i in range(cell.tasks)]
    zero = jax.tree.map(jnp.zeros_like, weights)

    def step() -> dict[str, jax.Array]:
        if variant == "vmap":
            return batched(weights, tasks)
        total = zero
        for task in one_by_one:
            total = one_more(weights, total, task)
        return total

    def gradient(result: dict[str, jax.Array]) -> dict[str, torch.Tensor]:
        restored = {n: jax_models.restore(np.asarray(g), layout) for n, g in result.items()}
        return {n: torch.from_numpy(g.copy()) for n, g in restored.items()}

    return Runner(step, jax.block_until_ready, gradient)


def _tasks(cell: Cell, layout: jax_models.Layout) -> Task:
    """Support x and y, query x and y, with the leading T."""
    support, query, _ = episodes(cell)

    def images(x: torch.Tensor) -> jax.Array:
        moved = x.permute(0, 1, 3, 4, 2) if layout == "NHWC" and x.ndim == 5 else x
        return jnp.asarray(moved.contiguous().numpy())

    def labels(y: torch.Tensor) -> jax.Array:
        return jnp.asarray(y.numpy() if y.is_floating_point() else y.int().numpy())

    return images(support.x), labels(support.y), images(query.x), labels(query.y)
