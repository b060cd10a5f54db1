"""Each gradient-based method against the paper's equations in a plain float64 loop over tasks, by
torch.autograd.grad on functions written out here; and that gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import adapt, algorithms
from metalearn.backbones.heads import CosineHead
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import lslr, sgd
from metalearn.types import META_STEP, Given
from tests.inner.cases import moved
from tests.tasks import apart, classification, generator, network, on, task

STEPS, RATE, HEAD = 2, 0.3, ("4.weight", "4.bias")


def net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 3)
    )


def outputs(w, x, warp=None, film=None):
    """The network, written out; with T-nets' maps, or a modulation of the fourth layer."""
    x = F.linear(x, w["0.weight"], w["0.bias"])
    x = x if warp is None else x @ warp[0].T
    x = (x - x.mean(0)) / (x.var(0, False) + 1e-5).sqrt() * w["1.weight"] + w["1.bias"]
    x = F.linear(x.tanh(), w["3.weight"], w["3.bias"])
    x = x if warp is None else x @ warp[1].T
    x = x if film is None else x * (1 + film[:5]) + film[5:]
    return F.linear(x, w["4.weight"], w["4.bias"])


def slopes(loss, fast):
    return dict(
        zip(fast, torch.autograd.grad(loss, list(fast.values()), create_graph=True), strict=True)
    )


def descend(fast, loss, steps=STEPS, rate=RATE):
    for k in range(steps):
        grads = slopes(loss(fast, k), fast)
        fast = {n: w - rate * grads[n] for n, w in fast.items()}
    return fast


def mamlpp(init, hyper, support, query):
    total, fast = 0, init
    norms = [{n: hyper[n][k] for n in ("1.weight", "1.bias")} for k in range(STEPS + 1)]
    share = (1 - 3 / 10) / STEPS  # after 3 meta-steps of the 10 that it anneals over
    for k in range(STEPS):
        grads = slopes(F.cross_entropy(outputs({**fast, **norms[k]}, support.x), support.y), fast)
        rate = {n: hyper[f"rate.{n[0]}"][k] for n in fast}
        fast = {n: w - rate[n] * grads[n] for n, w in fast.items()}
        weight = share if k < STEPS - 1 else 1 - share * (STEPS - 1)
        logits = outputs({**fast, **norms[k + 1]}, query.x)
        total = total + weight * F.cross_entropy(logits, query.y)
    return total


def boil(init, hyper, support, query):
    body = {n: w for n, w in init.items() if n not in HEAD}
    end = descend(body, lambda w, k: F.cross_entropy(outputs({**init, **w}, support.x), support.y))
    return F.cross_entropy(outputs({**init, **end}, query.x), query.y)


def cavia(init, hyper, support, query):
    film = [init[f"3.modulation.film.{part}"] for part in ("weight", "bias")]

    def loss(fast, batch):
        return F.cross_entropy(outputs(init, batch.x, film=F.linear(fast["phi"], *film)), batch.y)

    start = {"phi": torch.zeros(7, dtype=torch.float64, requires_grad=True)}
    return loss(descend(start, lambda w, k: loss(w, support)), query)


def alfa(init, hyper, support, query):
    fast, w = init, {n.removeprefix("generator."): t for n, t in hyper.items()}
    for k in range(STEPS):
        grads = slopes(F.cross_entropy(outputs(fast, support.x), support.y), fast)
        state = torch.stack([t.mean() for t in [*fast.values(), *(grads[n] for n in fast)]])
        made = w["out"] @ (w["in"] @ state + w["bias"]).relu() + w["shift"]
        a, b = made[: len(fast)], made[len(fast) :]
        fast = {
            n: (1 - hyper[f"decay.{n}"][k] * (1 + b[i])) * t
            - hyper[f"rate.{n}"][k] * (1 + a[i]) * grads[n]
            for i, (n, t) in enumerate(fast.items())
        }
    return F.cross_entropy(outputs(fast, query.x), query.y)


def metal(init, hyper, support, query):
    def two_layers(w, x):
        return w[2] @ (w[0] @ x + w[1]).relu() + w[3]

    phi, psi = ([hyper[f"{name}.{part}"] for part in ("in", "bias", "out", "shift")]
                for name in ("loss", "adapter"))  # fmt: skip

    def learned(fast, k):
        logits = outputs(fast, support.x)
        loss = F.cross_entropy(logits, support.y)
        means = torch.stack([t.mean() for t in fast.values()])
        tau = torch.cat([loss[None], means, logits.mean(0)])
        made = two_layers(psi, tau)
        now = [t * (1 + made[i]) + made[4 + i] for i, t in enumerate(phi)]
        return loss + two_layers(now, tau)[0]

    return F.cross_entropy(outputs(descend(init, learned), query.x), query.y)


def unicorn(init, hyper, support, query):
    body = {n: w for n, w in init.items() if n not in HEAD}
    start = {**body, "4.weight": init["4.weight"].repeat(3, 1), "4.bias": init["4.bias"].repeat(3)}
    end = descend(start, lambda w, k: F.cross_entropy(outputs(w, support.x), support.y))
    return F.cross_entropy(outputs(end, query.x), query.y)


def tnet(init, hyper, support, query):
    warp = init["0.warp.weight"], init["3.warp.weight"]
    own = {n: w for n, w in init.items() if "warp" not in n}
    end = descend(own, lambda w, k: F.cross_entropy(outputs(w, support.x, warp), support.y))
    return F.cross_entropy(outputs(end, query.x, warp), query.y)


def leo(init, hyper, support, query):
    def features(x):
        eye = {"4.weight": torch.eye(5, dtype=x.dtype), "4.bias": torch.zeros(5, dtype=x.dtype)}
        return outputs({**init, **eye}, x)

    def loss(w, batch):
        return F.cross_entropy(features(batch.x) @ w.T, batch.y)

    relation = [hyper[f"relation.{part}"] for part in ("in", "bias", "out", "shift")]
    e, z = features(support.x) @ hyper["encoder"].T, []
    for n in range(3):
        pairs = [
            torch.cat([e[i], other]) for i in range(len(e)) if support.y[i] == n for other in e
        ]
        related = [relation[2] @ (relation[0] @ p + relation[1]).relu() for p in pairs]
        z.append(torch.stack(related).mean(0) + relation[3])
    z = descend({"z": torch.stack(z)}, lambda w, k: loss(w["z"] @ hyper["decoder"].T, support),
                rate=hyper["rate"])["z"]  # fmt: skip
    w = descend({"w": z @ hyper["decoder"].T}, lambda w, k: loss(w["w"], support),
                rate=hyper["head_rate"])  # fmt: skip
    return loss(w["w"], query)


def sharp(init, hyper, support, query):
    def at_the_worst(fast, k):
        grads = slopes(F.cross_entropy(outputs(fast, support.x), support.y), fast)
        size = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        up = {n: w + (0.2 * grads[n] / size).detach() for n, w in fast.items()}
        return F.cross_entropy(outputs(up, support.x), support.y)

    return F.cross_entropy(outputs(descend(init, at_the_worst), query.x), query.y)


CASES = {
    "mamlpp": (mamlpp, lambda net: algorithms.MAMLpp(net, STEPS, lslr(0.1), multi_step=10)),
    "boil": (boil, lambda net: algorithms.BOIL(net, STEPS, sgd(RATE))),
    "cavia": (cavia, lambda net: algorithms.CAVIA(net, STEPS, sgd(RATE), context=7)),
    "alfa": (alfa, lambda net: algorithms.ALFA(net, STEPS)),
    "metal": (metal, lambda net: algorithms.MeTAL(net, STEPS, sgd(RATE))),
    "unicorn": (unicorn, lambda net: algorithms.UnicornMAML(net, STEPS, sgd(RATE))),
    "tnet": (tnet, lambda net: algorithms.TNet(net, STEPS, sgd(RATE))),
    "leo": (leo, lambda net: algorithms.LEO(net, STEPS, STEPS, code=4)),
    "sharp": (sharp, lambda net: algorithms.SharpMAML(net, STEPS, sgd(RATE), radius=0.2)),
}


def problem(name):
    """The plain loss, the algorithm, and its meta with nothing where it starts."""
    plain, build = CASES[name]
    algo, tasks = build(network(net)), classification(2, 3, 2, 5, (4,))
    meta = algo.init()
    meta["init"], meta["hyper"] = moved(meta["init"], 1), moved(meta["hyper"], 2, 0.3)
    if META_STEP in meta["buffers"]:
        meta["buffers"][META_STEP] += 3

    def loss(init, hyper):
        init, hyper = (
            {n: t.detach().requires_grad_() for n, t in d.items()} for d in (init, hyper)
        )
        each = [plain(init, hyper, *task(tasks, t)[:2]) for t in range(2)]
        return init, hyper, sum(each) / 2

    return algo, meta, tasks, loss


@pytest.mark.parametrize("name", CASES)
def test_the_meta_gradient_is_that_of_the_plain_loop_and_of_differences(name):
    algo, meta, tasks, loss = problem(name)
    init, hyper, value = loss(meta["init"], meta["hyper"])
    named = [("init", n, t) for n, t in init.items()] + [("hyper", n, t) for n, t in hyper.items()]
    grads = torch.autograd.grad(value, [t for *_, t in named], allow_unused=True,
                                materialize_grads=True)  # fmt: skip
    want = {"init": {}, "hyper": {}}
    for (part, n, _), g in zip(named, grads, strict=True):
        want[part][n] = g
    for strategy, batching in ((Adjoint(), "loop"), (Unroll(), "vmap")):
        got, _ = on(strategy, batching)(algo, meta, tasks)
        assert apart(got, want) < 1e-10, (strategy, batching)
    if name == "sharp":
        return  # its derivative leaves out that of the perturbation, as the paper's does
    g = generator(3)
    along = {p: {n: torch.randn(t.shape, generator=g).double() for n, t in want[p].items()}
             for p in want}  # fmt: skip

    def at(size):
        there = ({n: t + size * along[p][n] for n, t in meta[p].items()} for p in want)
        return float(loss(*there)[2].detach())

    quotient = (at(1e-6) - at(-1e-6)) / 2e-6
    product = sum(float((want[p][n] * along[p][n]).sum()) for p in want for n in want[p])
    assert product == pytest.approx(quotient, rel=1e-5) and abs(product) > 1e-3


def test_mamlpps_parts_are_taken_one_by_one():
    module, tasks = network(net), classification(2, 3, 2, 5, (4,))
    plain = algorithms.MAML(module, STEPS, sgd(RATE))
    want, _ = Unroll()(plain, plain.init(), tasks)
    norms = algorithms.MAML(module, STEPS, sgd(RATE), step_norms=True)
    assert norms.init()["hyper"]["1.weight"].shape == (STEPS + 1, 6)
    assert norms.step_weights(norms.init()) is None
    steps = algorithms.MAML(module, STEPS, sgd(RATE), multi_step=4)
    meta = steps.init()
    assert not meta["hyper"] and steps.step_weights(meta).tolist() == [0, 0.5, 0.5]
    meta["buffers"][META_STEP] += 2
    assert steps.step_weights(meta).tolist() == [0, 0.25, 0.75]
    meta["buffers"][META_STEP] += 9
    assert steps.step_weights(meta).tolist() == [0, 0, 1]
    assert apart(Unroll()(steps, meta, tasks)[0], want) < 1e-12


def test_steps_are_weighed_on_features_too():
    class ThroughTheNetwork(algorithms.MAML):
        """Of a class of its own, and so not taken for one on features."""

    given = network(net), STEPS, sgd(RATE)
    head = {"adapting": list(HEAD), "multi_step": 4}
    found = []
    for kind in (algorithms.MAML, ThroughTheNetwork):
        algo = kind(*given, **head)
        meta = algo.init()
        meta["buffers"][META_STEP] += 1
        found.append(Adjoint()(algo, meta, classification(2, 3, 2, 5, (4,)))[0])
    assert apart(*found) < 1e-10


def test_unicorn_mamls_answers_are_permuted_with_the_labels():
    algo, (support, query, _) = (
        algorithms.UnicornMAML(network(net), 3),
        task(classification(shape=(4,)), 0),
    )
    meta, other = algo.init(), torch.tensor([2, 0, 1])
    logits = algo.predict(meta, adapt(algo, meta, support), query.x)
    turned = adapt(algo, meta, support._replace(y=other[support.y]))
    torch.testing.assert_close(algo.predict(meta, turned, query.x)[:, other], logits)
    assert (logits[:, 0] - logits[:, 1]).abs().min() > 1e-4
    start = algo.predict(meta, algo.begin(meta, Given(support)), query.x)
    torch.testing.assert_close(start, start[:, :1].expand_as(start))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_unicorn_maml_on_a_network_that_is_a_head(batching):
    """What adapts are buffers of the head, and no other weight is there: one vector for all ways
    changes no softmax, so that nothing is learned."""
    algo = algorithms.UnicornMAML(
        network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), 2, sgd(RATE)
    )
    tasks, meta = classification(2, 3, 2, 5, (4,)), algo.init()
    losses = []
    for t in range(2):
        support, query = task(tasks, t)[:2]
        w, b = meta["init"]["1.weight"].repeat(3, 1), meta["init"]["1.bias"].repeat(3)
        for _ in range(2):
            w, b = w.detach().requires_grad_(), b.detach().requires_grad_()
            at = F.cross_entropy(support.x @ w.T + b, support.y)
            d_w, d_b = torch.autograd.grad(at, (w, b))
            w, b = w - RATE * d_w, b - RATE * d_b
        losses.append(F.cross_entropy(query.x @ w.T + b, query.y).detach())
    for strategy in (Adjoint, Unroll, Checkpointed):
        got, metrics = on(strategy(), batching)(algo, meta, tasks)
        torch.testing.assert_close(metrics["loss"], torch.stack(losses), rtol=1e-10, atol=0)
        assert all(g.abs().max() < 1e-12 for g in got["init"].values())


@pytest.mark.parametrize(
    "build, told",
    [
        (lambda: algorithms.CAVIA(nn.Linear(4, 3)), "no layer before the head"),
        (lambda: algorithms.CAVIA(net(), layer="9"), "algorithm.layer=9 is no layer"),
        (lambda: algorithms.CAVIA(net(), context=0), "algorithm.context=0 must be 1 or more"),
        (lambda: algorithms.BOIL(nn.Linear(4, 3)), "no weight of the network adapts"),
        (lambda: algorithms.TNet(nn.Linear(4, 3)), "use a deeper network"),
        (lambda: algorithms.LEO(nn.Linear(4, 3)), "needs a network that ends in a linear head"),
        (lambda: algorithms.SharpMAML(net(), radius=-1.0), "algorithm.radius=-1.0 must be 0 or"),
        (lambda: algorithms.MAMLpp(net(), multi_step=-1), "algorithm.multi_step=-1 must be 0 or"),
        (lambda: algorithms.MAMLpp(nn.Linear(4, 3)), "step_norms=true needs batch norm"),
        (lambda: algorithms.UnicornMAML(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))),
         "needs a linear head, not LayerNorm"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(build, told):
    with pytest.raises(UsageError, match=told):
        build()


class ByMaps(nn.Module):
    """Its head is a convolution."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Conv2d(2, 3, 2)

    def forward(self, x):
        return self.head(self.body(x).view(-1, 2, 2, 2)).flatten(1)


def by_angle() -> nn.Module:
    """Its last weight is a number, the scale of its head."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), CosineHead(torch.ones(3, 6)))


@pytest.mark.parametrize("build", [by_angle, ByMaps])
@pytest.mark.parametrize("name", ["boil", "cavia", "alfa", "metal", "tnet", "sharp"])
def test_any_last_layer_will_do(name, build):
    algo = CASES[name][1](network(build))
    gradient, _ = Adjoint()(algo, algo.init(), classification(2, 3, 2, 5, (4,)))
    assert all(t.isfinite().all() for part in gradient.values() for t in part.values())


def test_metal_needs_outputs():
    with pytest.raises(UsageError, match="has none to train"):
        algorithms.MeTAL(nn.Flatten())


def test_leo_on_features_that_are_given_takes_their_type():
    """Its network keeps no weights of its own, whose type what is learned would take."""
    algo = algorithms.LEO(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 1, 1, code=4)
    meta = algo.init()
    assert not meta["init"] and {t.dtype for t in meta["hyper"].values()} == {torch.float32}
    tasks = classification(2, 3, 2, 5, (4,)).map(
        lambda t: t.float() if t.is_floating_point() else t
    )
    gradient, _ = Adjoint()(algo, meta, tasks)
    assert all(t.isfinite().all() for t in gradient["hyper"].values())
