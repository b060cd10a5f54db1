#!/bin/sh
# All that waits for a CUDA device, the most wanted first: the race of the engine, the errors of its
# precisions, its memory, the tests, then more of the race. Every part has its own seconds, 580
# together before the last two, and leaves the others be; started again, the race goes on.
# Usage: scripts/engine_gpu.sh [folder for the results] [override of the race ...]
# Ours stands with a batching of its own each time, so that no time goes into choosing one; with
# `frameworks=ours,ours-graph,...` the choice is part of the race.
out=${1:-experiments/engine/cuda}
[ $# -gt 0 ] && shift
python=${PYTHON:-$(command -v python || command -v python3)}
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

bench() {  # name, seconds, overrides
    name=$1 seconds=$2
    shift 2
    part "$name" "$seconds" metalearn.cli bench engine device=cuda allocator=default out="$out" "$@"
}

ours=ours@exact:vmap:fp32:graph,ours@exact:vmap+im2col:fp32:graph,ours@exact:vmap:bf16:graph
ours=$ours,ours@exact:vmap:fp32,ours@exact:vmap+compile:bf16
race="repeats=3 budget=100 frameworks=$ours,learn2learn,higher,torchopt,jax-vmap"

bench race-conv4-28-1 110 cells=conv4-28/K=1/T=32 $race "$@"
bench race-resnet12-1 110 cells=resnet12-84/K=1/T=4 $race "$@"
bench race-conv4-28-5 110 cells=conv4-28/K=5/T=32 $race "$@"
bench errors 40 part=errors
bench memory 60 part=memory
# A warning of another version of torch fails no test here.
part tests 150 pytest -q -W default -p no:cacheprovider -n 4 -m gpu tests
bench race-conv4-32-1 110 cells=conv4-32/K=1/T=32 $race "$@"
bench race-conv4-32-5 110 cells=conv4-32/K=5/T=32 $race "$@"
tail -2 "$out/tests.log"
cat "$out"/*.md
exit $failed
