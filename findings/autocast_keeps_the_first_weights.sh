#!/usr/bin/env bash
# Steps of an optimizer inside one torch.autocast block on a CPU change nothing that is computed.
#
# Expected: each forward pass casts the weights as they are then; a weight that was changed in place
#    (its version counter is one more) is cast again. So an inner loop may stand in one block.
# Found: the cast of a leaf that requires a gradient is kept until the block ends, whatever becomes of
#    the leaf. Three steps of SGD in one block give the first loss three times, without a word; with a
#    block for each step the loss moves. Gradients are all of the first weights too. With
#    torch.autocast(..., cache_enabled=False) one block is right.
#
# Output with torch 2.14.1:
#   one block: all three losses equal: True
#   a block a step: all three losses equal: False
#   one block without the cache equals a block a step: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat > "$work/ask.py" <<'PYTHON'
import torch

x, y = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))


def step(net, optimizer):
    loss = ((net(x) - y) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def losses(one_block, cache=True):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    block = {"dtype": torch.bfloat16, "cache_enabled": cache}
    if one_block:
        with torch.autocast("cpu", **block):
            return [step(net, optimizer) for _ in range(3)]
    found = []
    for _ in range(3):
        with torch.autocast("cpu", **block):
            found.append(step(net, optimizer))
    return found


one, each = losses(True), losses(False)
print("one block: all three losses equal:", len(set(one)) == 1)
print("a block a step: all three losses equal:", len(set(each)) == 1)
print("one block without the cache equals a block a step:", losses(True, cache=False) == each)
PYTHON
cat > "$work/expected" <<'TEXT'
one block: all three losses equal: True
a block a step: all three losses equal: False
one block without the cache equals a block a step: True
TEXT
"$python" "$work/ask.py" | tee "$work/found"
diff "$work/expected" "$work/found"
