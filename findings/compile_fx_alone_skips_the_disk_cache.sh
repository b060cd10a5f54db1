#!/usr/bin/env bash
# Inductor's compile_fx, called by itself on a graph of make_fx, never uses the cache on disk.
#
# Expected: compile_fx(graph, inputs) keeps what it compiled on disk as torch.compile does (the FX
#    graph cache is on by default), so a second process that compiles the same graph loads it.
# Found: every call bypasses the cache, because no tracing context with an environment of symbols
#    is there ("No shape env", told at INFO alone), although no size is symbolic. Only the C++
#    compiler's own step is found again; the lowering, most of the time of a large graph, is redone in
#    every process. Around compile_fx, a TracingContext whose FakeTensorMode has a ShapeEnv and
#    static_shapes=True is enough: then the second process hits.
#
# Output with torch 2.14.1, each line a process of its own:
#   alone, first: {'fxgraph_cache_bypass': 1}
#   alone, second: {'fxgraph_cache_bypass': 1}
#   in a context, first: {'fxgraph_cache_miss': 1}
#   in a context, second: {'fxgraph_cache_hit': 1}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy
export TORCHINDUCTOR_CACHE_DIR="$work/cache"
cat > "$work/ask.py" <<'PYTHON'
import contextlib
import sys

import torch
from torch._dynamo.utils import counters
from torch._functorch import config
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

x = torch.rand(8, 8)
graph = make_fx(lambda x: (x @ x).sin().sum(0))(x)
within = contextlib.nullcontext()
if sys.argv[1] == "in a context":
    within = tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)))
with torch.no_grad(), config.patch(enable_autograd_cache=False), within:
    compile_fx(graph, [x])
found = {name: n for name, n in counters["inductor"].items() if name.startswith("fxgraph_cache")}
print(f"{', '.join(sys.argv[1:])}: {found}")
PYTHON
cat > "$work/expected" <<'TEXT'
alone, first: {'fxgraph_cache_bypass': 1}
alone, second: {'fxgraph_cache_bypass': 1}
in a context, first: {'fxgraph_cache_miss': 1}
in a context, second: {'fxgraph_cache_hit': 1}
TEXT
for how in "alone" "in a context"; do
    for turn in first second; do
        "$python" "$work/ask.py" "$how" "$turn"
    done
done | tee "$work/found"
diff "$work/expected" "$work/found"
