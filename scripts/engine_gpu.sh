#!/bin/sh
# All that waits for a CUDA device, the most wanted first: the race of the engine, the errors of its
# precisions, its memory, and the tests. Every part has its own seconds and leaves the others be.
# Usage: scripts/engine_gpu.sh [folder for the results] [override of the race ...]
# Ours stands with a batching of its own each time, so that no time goes into choosing one; with
# `frameworks=ours,ours-graph,...` the choice is part of the race. Started again, the race goes on.
out=${1:-experiments/engine/cuda}
[ $# -gt 0 ] && shift
python=${PYTHON:-python}
mkdir -p "$out"
failed=0

part() {  # name, seconds, then the command's words
    name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$python" -m "$@" > "$out/$name.log" 2>&1 && return
    echo "$name: ended with code $?; $name.log says why"
    tail -3 "$out/$name.log"
    failed=1
}

bench="metalearn.cli bench engine device=cuda allocator=default out=$out"
ours=ours@exact:vmap:fp32:graph,ours@exact:vmap+unfold:fp32:graph,ours@exact:vmap:bf16:graph
ours=$ours,ours@exact:vmap:fp32,ours@exact:vmap+compile:bf16
race="repeats=3 budget=120 frameworks=$ours,learn2learn,higher,torchopt,jax-vmap"
for cell in conv4-28/K=1/T=32 resnet12-84/K=1/T=4 conv4-28/K=5/T=32 conv4-32/K=1,5/T=32; do
    part "race-$(echo $cell | tr / -)" 130 $bench cells=$cell $race "$@"
done
part errors 60 $bench part=errors
part memory 90 $bench part=memory
part tests 240 pytest -q -W default -p no:cacheprovider -n 4 -m gpu tests
tail -2 "$out/tests.log"
cat "$out"/*.md
exit $failed
