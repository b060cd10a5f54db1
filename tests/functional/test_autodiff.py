"""The derivatives that keep nothing, against torch.func's own."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metalearn.functional.autodiff import derivative_along, gradient_at
from tests.tasks import generator


def loss(weights: dict[str, Tensor], rates: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """With a gradient inside, as an inner step has one."""
    slope = grad(lambda w: (w * x).tanh().square().sum())(weights["a"])
    moved = weights["a"] - rates["a"] * slope
    return (moved * x).sin().sum() + weights["b"].sum(), moved


def inputs() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    a, b, rate = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    x = torch.randn(5, 4, generator=generator(1), dtype=torch.float64)
    return {"a": a, "b": b, "unused": b}, {"a": rate.exp()}, x


@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "enable_grad"])
def test_gradient_at(enabled):
    weights, rates, x = inputs()
    want, want_aux = grad(loss, argnums=(0, 1), has_aux=True)(weights, rates, x[0])
    with torch.set_grad_enabled(enabled):
        got, aux = gradient_at(lambda w, r: loss(w, r, x[0]), weights, rates, has_aux=True)
    torch.testing.assert_close((got, aux), (want, want_aux), rtol=1e-12, atol=0)
    assert not got[0]["a"].requires_grad


def test_gradient_at_under_vmap():
    weights, rates, x = inputs()
    want = vmap(lambda x: grad(lambda w: loss(w, rates, x)[0])(weights))(x)
    with torch.no_grad():
        got = vmap(lambda x: gradient_at(lambda w: loss(w, rates, x)[0], weights)[0])(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_derivative_along():
    weights, rates, x = inputs()
    along = {"a": torch.ones(4, dtype=torch.float64), "b": rates["a"], "unused": rates["a"]}

    def f(weights: dict[str, Tensor]) -> Tensor:
        return loss(weights, rates, x[0])[0]

    slope = grad(f)(weights)
    want = sum((slope[name] * along[name]).sum() for name in slope)
    torch.testing.assert_close(derivative_along(f, (weights,), (along,)), want)
