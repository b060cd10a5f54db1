#!/usr/bin/env bash
# torch.optim.SGD(momentum=..., differentiable=True) gives a meta-gradient of the wrong sign.
#
# Expected: with differentiable=True one can backpropagate through optimizer steps, as the flag says;
#    momentum is a sum of gradients and has no reason to be left out.
# Found: without momentum the gradient of the end with respect to the start is right to 1e-9. With
#    momentum the first step's gradient enters its buffer detached, so its share of every later step
#    has no derivative: 0.16 in place of -2.05 for three steps on w**4. Nothing is raised. A
#    finite difference of the same loop shows it.
#
# Output with torch 2.14.1:
#   momentum 0.0: right: True
#   momentum 0.9: right: False, sign right: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat > "$work/ask.py" <<'PYTHON'
import sys

import torch


def end(start, momentum, differentiable):
    weight = start.clone()
    if not differentiable:
        weight = weight.detach().requires_grad_()
    optimizer = torch.optim.SGD([weight], 0.1, momentum=momentum, differentiable=differentiable)
    for _ in range(3):
        loss = (weight.clone() ** 4).sum()
        (weight.grad,) = torch.autograd.grad(loss, weight, create_graph=differentiable)
        optimizer.step()
    return weight.sum()


for momentum in (0.0, 0.9):
    start = torch.ones(1, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(end(start, momentum, True), start)[0].item()
    ends = [end(start.detach() + h, momentum, False).item() for h in (1e-6, -1e-6)]
    want = (ends[0] - ends[1]) / 2e-6
    print(f"momentum {momentum}: {got:.4f}, by differences {want:.4f}", file=sys.stderr)
    right = abs(got - want) < 1e-6
    print(f"momentum {momentum}: right: {right}" + ("" if right else f", sign right: {got * want > 0}"))
PYTHON
cat > "$work/expected" <<'TEXT'
momentum 0.0: right: True
momentum 0.9: right: False, sign right: False
TEXT
"$python" "$work/ask.py" | tee "$work/found"
diff "$work/expected" "$work/found"
