#!/usr/bin/env bash
# torchmetrics' mean average precision with pycocotools calls a diverged detector perfect.
#
# Expected: a box whose corners are NaN overlaps nothing; a detector that puts out NaN has 0, or the
#    metric raises.
# Found: pycocotools matches such a box with any object, at every threshold: one box of NaN an image,
#    with a finite score and the right label, has a mean average precision of 1.0. The other backend,
#    faster_coco_eval, gives 0.0. Neither says anything. Boxes have to be checked before.
#
# Output with torchmetrics 1.9.0, pycocotools 2.0.11, faster-coco-eval 1.8.0, torch 2.14.1:
#   pycocotools: 1.0
#   faster_coco_eval: 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 pycocotools==2.0.11 \
    faster-coco-eval==1.8.0
cat > "$work/ask.py" <<'PYTHON'
import warnings

import torch
from torchmetrics.detection import MeanAveragePrecision

warnings.simplefilter("ignore")
label = torch.tensor([0])
objects = {"boxes": torch.tensor([[10.0, 10.0, 20.0, 20.0]]), "labels": label}
found = {"boxes": torch.full((1, 4), torch.nan), "labels": label, "scores": torch.tensor([0.9])}
for backend in ("pycocotools", "faster_coco_eval"):
    metric = MeanAveragePrecision(iou_thresholds=[0.5, 0.95], backend=backend)
    metric.update([found] * 3, [objects] * 3)
    print(f"{backend}: {metric.compute()['map'].item()}")
PYTHON
cat > "$work/expected" <<'TEXT'
pycocotools: 1.0
faster_coco_eval: 0.0
TEXT
"$python" "$work/ask.py" | tee "$work/found"
diff "$work/expected" "$work/found"
