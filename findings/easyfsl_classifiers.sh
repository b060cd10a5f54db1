#!/usr/bin/env bash
# Three answers of easyfsl 1.5.0 that its own documentation, or a good guess, would not give.
#
# 1. Expected: a fitted classifier says the same of the same queries whenever it is asked. Found:
#    TIM, PTMAP and BDCSPN move their prototypes in forward() and go on from there the next time.
# 2. Expected, as documented ("Higher temperature means softer predictions"): TIM at temperature 100
#    is less sure than at 1. Found: it multiplies, and is surer.
# 3. Expected, as documented (k neighbours, shape (n_features, k)): k_nearest_neighbours(x, 3)
#    gives 3. Found: 2, as it counts the point itself; so LaplacianShot(knn=1) has no neighbours.
#
# Output with easyfsl 1.5.0 and torch 2.14.1:
#   TIM: asked twice, differs
#   PTMAP: asked twice, differs
#   BDCSPN: asked twice, differs
#   temperature 100 is softer than 1: False
#   neighbours for k=3: 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check easyfsl==1.5.0 torch==2.14.1
cat > "$work/ask.py" <<'PYTHON'
import torch
from easyfsl.methods import BDCSPN, PTMAP, TIM
from easyfsl.methods.utils import k_nearest_neighbours

torch.manual_seed(0)
labels = torch.arange(5)
support = torch.eye(16)[:5] + torch.rand(5, 16)
queries = torch.eye(16)[labels.repeat(6)] + torch.rand(30, 16)


def fitted(method, **options):
    classifier = method(**options)
    classifier.process_support_set(support, labels)
    return classifier


for method in (TIM, PTMAP, BDCSPN):
    classifier = fitted(method)
    first, second = (classifier(queries).detach().clone() for _ in range(2))
    told = "the same" if torch.allclose(first, second, rtol=0, atol=1e-5) else "differs"
    print(f"{method.__name__}: asked twice, {told}")
cool, hot = (
    fitted(TIM, temperature=t, fine_tuning_steps=0, use_softmax=True)(queries).max(1).values.mean()
    for t in (1.0, 100.0)
)
print("temperature 100 is softer than 1:", bool(hot < cool))
print("neighbours for k=3:", k_nearest_neighbours(queries, 3).shape[1])
PYTHON
cat > "$work/expected" <<'TEXT'
TIM: asked twice, differs
PTMAP: asked twice, differs
BDCSPN: asked twice, differs
temperature 100 is softer than 1: False
neighbours for k=3: 2
TEXT
"$python" "$work/ask.py" | tee "$work/found"
diff "$work/expected" "$work/found"
