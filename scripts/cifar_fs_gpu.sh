#!/bin/sh
# CIFAR-FS in two stages on a CUDA device: a ResNet-12 pre-trained on the base classes by the recipe
# of RFS (Tian et al. 2020), then ProtoNets, Meta-Baseline and second-order MAML from its weights,
# 1-shot and 5-shot, all on the same test episodes; and one table beside the published figures.
# Usage: scripts/cifar_fs_gpu.sh [folder for the runs] [override of every command ...]
# A run that was killed goes on when this is started again; one that fails leaves the others be.
out=${1:-runs/cifar_fs_gpu}
[ $# -gt 0 ] && shift
python=${PYTHON:-python}
data="dataset=cifar_fs backbone=resnet12 augmentation=standard evaluation.episodes=1000"
failed=0

step() {  # name, then the command's words
    name=$1
    shift
    $python -m metalearn.cli "$@" run_dir="$out/$name" || { echo "failed: $name"; failed=1; }
}

step pretrain pretrain $data backbone.drop_rate=0.1 pretrain/schedule=milestones \
    training.epochs=90 training.batch_size=64 optimizer.lr=0.05 \
    precision=bf16 training.channels_last=true "$@"

weights="backbone.norm=frozen backbone.weights=$out/pretrain"
outer="outer=sgd outer.optimizer.lr=0.001 outer.optimizer.momentum=0.9 training.meta_batch=4"
length="training.steps=2000 training.validate_every=200 evaluation.validation_episodes=200"
if [ -f "$out/pretrain/backbone.safetensors" ]; then
    for shots in 1 5; do
        common="$data $weights $outer $length episodes.shots=$shots"
        step protonet_$shots train algorithm=protonet $common algorithm.temperature=64 "$@"
        step meta_baseline_$shots train algorithm=protonet $common algorithm.distance=cosine \
            algorithm.temperature=0.1 algorithm.learn_temperature=true "$@"
        step maml_$shots train algorithm=maml gradient=adjoint $common algorithm.steps=5 \
            inner.rate=0.01 training.queries=15 "$@"
    done
fi
$python -m scripts.cifar_fs_table "$out"
exit $failed
