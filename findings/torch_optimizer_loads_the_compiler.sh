#!/usr/bin/env bash
# The first optimizer of a process loads torch's compiler, used or not.
#
# Expected: after `import torch`, building torch.optim.SGD over one tensor takes microseconds.
# Found: it imports torch._dynamo and, through it, torch._inductor and sympy: hundreds of modules,
#    and 2.0 s of a processor where `import torch` itself took 2.4 s (a Xeon). So each short run of a
#    sweep waits twice. Importing torch.optim alone does not do it; the second optimizer is free.
#
# Output with torch 2.14.1 (seconds are this machine's, and are not compared):
#   import torch: compiler there: False
#   first optimizer: compiler there: True, more than 400 modules: True
#   first optimizer takes over 1000 times the second: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat > "$work/ask.py" <<'PYTHON'
import sys
import time

start = time.process_time()
import torch

loading = time.process_time() - start
print("import torch: compiler there:", "torch._dynamo" in sys.modules)
weight = torch.zeros(1, requires_grad=True)
before, seconds = len(sys.modules), []
for _ in range(2):
    start = time.process_time()
    torch.optim.SGD([weight], lr=0.1)
    seconds.append(time.process_time() - start)
there, many = "torch._dynamo" in sys.modules, len(sys.modules) - before > 400
print(f"first optimizer: compiler there: {there}, more than 400 modules: {many}")
print("first optimizer takes over 1000 times the second:", seconds[0] > 1000 * seconds[1])
print(f"import {loading:.1f} s, first optimizer {seconds[0]:.1f} s", file=sys.stderr)
PYTHON
cat > "$work/expected" <<'TEXT'
import torch: compiler there: False
first optimizer: compiler there: True, more than 400 modules: True
first optimizer takes over 1000 times the second: True
TEXT
"$python" "$work/ask.py" | tee "$work/found"
diff "$work/expected" "$work/found"
