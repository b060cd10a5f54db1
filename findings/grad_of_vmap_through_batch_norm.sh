#!/usr/bin/env bash
# torch.func: the meta-gradient through batch norm depends on whether vmap or grad is outside.
#
# Expected: the gradient of a mean over tasks is the mean of the tasks' gradients, so
#    grad(mean(vmap(task))) and mean(vmap(grad(task))) differ by rounding, 1e-15 in float64.
# Found: with nn.BatchNorm2d on the statistics of the batch, inside a task of one inner step,
#    mean(vmap(grad)) equals a loop over tasks to rounding and grad(mean(vmap)) is off by more than
#    1e-4 of its length; nothing is raised. With group norm in its place both are right.
#
# Output with torch 2.14.1:
#   batch norm: vmap outside: right: True, grad outside: right: False
#   group norm: vmap outside: right: True, grad outside: right: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat > "$work/ask.py" <<'PYTHON'
import sys

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(4, 6, 1, 8, 8), torch.randint(0, 2, (4, 6))
norms = {
    "batch norm": nn.BatchNorm2d(3, track_running_stats=False),
    "group norm": nn.GroupNorm(3, 3),
}
for name, norm in norms.items():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.Flatten(), nn.Linear(108, 2))
    start = {n: t.detach() for n, t in net.named_parameters()}

    def loss(weights, x, y):
        return cross_entropy(functional_call(net, weights, x), y)

    def task(start, x, y):
        step = grad(loss)(start, x, y)
        return loss({n: start[n] - 0.1 * step[n] for n in start}, x, y)

    def flat(gradients):
        return torch.cat([t.flatten() for t in gradients.values()])

    want = torch.stack([flat(grad(task)(start, x[t], y[t])) for t in range(4)]).mean(0)
    each = vmap(grad(task), (None, 0, 0))(start, x, y)
    outside = {
        "vmap": flat({n: t.mean(0) for n, t in each.items()}),
        "grad": flat(grad(lambda start: vmap(task, (None, 0, 0))(start, x, y).mean())(start)),
    }
    off = {way: ((got - want).norm() / want.norm()).item() for way, got in outside.items()}
    print(name, off, file=sys.stderr)
    said = [f"{way} outside: right: {value < 1e-12}" for way, value in off.items()]
    print(f"{name}: {', '.join(said)}")
    assert off["grad"] < 1e-12 or off["grad"] > 1e-4
PYTHON
cat > "$work/expected" <<'TEXT'
batch norm: vmap outside: right: True, grad outside: right: False
group norm: vmap outside: right: True, grad outside: right: True
TEXT
"$python" "$work/ask.py" | tee "$work/found"
diff "$work/expected" "$work/found"
