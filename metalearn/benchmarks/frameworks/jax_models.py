"""The benchmark's networks in plain JAX, by the names and layouts of the torch parameters.

Images and kernels are laid out NCHW and OIHW, or NHWC with HWIO kernels; `convert` and
`restore` go between torch's layout and the network's. Every network is gated on its gradient,
because some ways to write max-pooling in JAX have a wrong one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Layout = Literal["NCHW", "NHWC"]
Weights = Mapping[str, Array]
Network = Callable[[Weights, Array], Array]
"""(weights, `[B, *X]`) -> `[B, N]`."""


def network(model: str, layout: Layout) -> Network:
    """The function of `metalearn.benchmarks.models.module(model)`."""
    name = model.partition("-")[0]
    if name == "mlp":
        return mlp
    if name == "vit":
        return lambda weights, x: vit(weights, x, layout)
    body = {"conv4": conv4, "tiny": conv4, "resnet12": resnet12}[name]
    return lambda weights, x: body(weights, x, layout)


def convert(value: np.ndarray, layout: Layout) -> np.ndarray:
    """A torch parameter in the network's layout. Linear weights stay `[out, in]`."""
    if layout == "NHWC" and value.ndim == 4:
        return np.ascontiguousarray(value.transpose(2, 3, 1, 0))
    return value


def restore(value: np.ndarray, layout: Layout) -> np.ndarray:
    """A gradient back in torch's layout."""
    if layout == "NHWC" and value.ndim == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    return value


def conv(x: Array, kernel: Array, layout: Layout, stride: int = 1, padding: int = 1) -> Array:
    """A square convolution without bias."""
    kernels = "OIHW" if layout == "NCHW" else "HWIO"
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=(layout, kernels, layout)
    )


def by_channel(vector: Array, layout: Layout) -> Array:
    """`[C]` shaped to broadcast over images."""
    return vector.reshape(1, -1, 1, 1) if layout == "NCHW" else vector


def batch_norm(x: Array, weights: Weights, name: str, layout: Layout) -> Array:
    """By the statistics of the batch."""
    dims = (0, 2, 3) if layout == "NCHW" else (0, 1, 2)
    mean = x.mean(dims, keepdims=True)
    var = jnp.square(x - mean).mean(dims, keepdims=True)
    scale = lax.rsqrt(var + 1e-5) * by_channel(weights[f"{name}.weight"], layout)
    return (x - mean) * scale + by_channel(weights[f"{name}.bias"], layout)


def max_pool(x: Array, layout: Layout) -> Array:
    """2x2; an odd last row or column is left out.

    By comparisons: the derivative of `max` asks where its input equals its output, and a fused
    program that computes the input twice finds no such place (errors of 0.4 and more here).
    """
    for axis in (2, 3) if layout == "NCHW" else (1, 2):
        size = x.shape[axis]
        one = lax.slice_in_dim(x, 0, size // 2 * 2, 2, axis)
        other = lax.slice_in_dim(x, 1, size // 2 * 2, 2, axis)
        x = jnp.where(one >= other, one, other)
    return x


def linear(x: Array, weights: Weights, name: str) -> Array:
    """x W^T + b."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def flat(x: Array, layout: Layout) -> Array:
    """`[B, D]` in torch's order of features."""
    x = x if layout == "NCHW" else x.transpose(0, 3, 1, 2)
    return x.reshape(len(x), -1)


def mlp(weights: Weights, x: Array) -> Array:
    """Linear layers 0, 2, 4 with ReLU between."""
    for name in ("0", "2"):
        x = jax.nn.relu(linear(x, weights, name))
    return linear(x, weights, "4")


def conv4(weights: Weights, x: Array, layout: Layout) -> Array:
    """Convolution, batch norm, pooling, ReLU, four times; the head."""
    for i in range(0, 16, 4):
        x = conv(x, weights[f"features.{i}.weight"], layout)
        x = x + by_channel(weights[f"features.{i}.bias"], layout)
        x = jax.nn.relu(max_pool(batch_norm(x, weights, f"features.{i + 1}", layout), layout))
    return linear(flat(x, layout), weights, "head")


def resnet12(weights: Weights, x: Array, layout: Layout) -> Array:
    """Four residual blocks, the mean over positions, the head."""
    for block in range(4):
        name, y = f"blocks.{block}", x
        for i in range(3):
            y = conv(y, weights[f"{name}.conv{i}.weight"], layout)
            y = batch_norm(y, weights, f"{name}.norm{i}", layout)
            y = jax.nn.leaky_relu(y, 0.1) if i < 2 else y
        short = conv(x, weights[f"{name}.short.weight"], layout, padding=0)
        y = y + batch_norm(short, weights, f"{name}.short_norm", layout)
        x = jax.nn.leaky_relu(max_pool(y, layout), 0.1)
    return linear(x.mean((2, 3) if layout == "NCHW" else (1, 2)), weights, "head")


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    """Over the last dimension, with timm's epsilon."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    normal = (x - mean) * lax.rsqrt(var + 1e-6)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(x: Array, weights: Weights, name: str, heads: int) -> Array:
    """Self-attention over `[B, L, D]`."""
    b, length, d = x.shape
    qkv = linear(x, weights, f"{name}.qkv").reshape(b, length, 3, heads, d // heads)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    weight = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) * (d // heads) ** -0.5, axis=-1)
    return linear((weight @ v).transpose(0, 2, 1, 3).reshape(b, length, d), weights, f"{name}.proj")


def vit(weights: Weights, x: Array, layout: Layout, depth: int = 12, heads: int = 3) -> Array:
    """timm's ViT: patches, class token, pre-norm blocks, the class token's head."""
    x = conv(x, weights["patch_embed.proj.weight"], layout, stride=4, padding=0)
    x = x + by_channel(weights["patch_embed.proj.bias"], layout)
    x = x.transpose(0, 2, 3, 1) if layout == "NCHW" else x
    x = x.reshape(len(x), -1, x.shape[-1])
    token = jnp.broadcast_to(weights["cls_token"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([token, x], 1) + weights["pos_embed"]
    for i in range(depth):
        name = f"blocks.{i}"
        normal = layer_norm(x, weights, f"{name}.norm1")
        x = x + attention(normal, weights, f"{name}.attn", heads)
        y = linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
        y = jax.nn.gelu(y, approximate=False)
        x = x + linear(y, weights, f"{name}.mlp.fc2")
    return linear(layer_norm(x, weights, "norm")[:, 0], weights, "head")


def cross_entropy(logits: Array, y: Array) -> Array:
    """Mean over `[B]`."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def mean_squared(values: Array, y: Array) -> Array:
    """Mean over everything."""
    return jnp.square(values - y).mean()


def arrays(values: Mapping[str, Any], layout: Layout) -> dict[str, Array]:
    """Torch parameters as JAX arrays."""
    return {n: jnp.asarray(convert(v.numpy(), layout)) for n, v in values.items()}
