#!/bin/sh
# All that waits for a CUDA device: its tests, then the race, errors and memory of the engine.
# Usage: scripts/engine_gpu.sh [folder for the results]
set -e
out=${1:-experiments/engine-gpu}
python -m pytest -q -n 0 -m gpu tests
python -m metalearn.cli bench engine device=cuda part=errors out="$out"
python -m metalearn.cli bench engine device=cuda part=memory out="$out"
python -m metalearn.cli bench engine device=cuda cells=conv4-28,conv4-32,resnet12-84/K=1,5/T=32 out="$out"
cat "$out"/*.md
