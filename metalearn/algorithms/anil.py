"""ANIL: almost no inner loop; only the head adapts, the body is learned by the outer loop.

    head_{k+1} = head_k - alpha * grad_head L_support(body, head_k)                  (section 4)
    min over (body, head) of  sum over tasks of  L_query(body, head_K)

Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML, 2020.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.backbones.heads import head_name, learned, within
from metalearn.errors import UsageError
from metalearn.inner.protocol import EXACT
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Kind


def ANIL(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = sgd(0.1),
    loss: Loss = cross_entropy,
    head: str | None = None,
    proximal: float = 0.0,
    kinds: tuple[Kind, ...] = EXACT,
) -> MAML:
    """MAML whose head alone adapts.

    head: name of the submodule that adapts; by default the one that holds the last weights.
    proximal: over the head alone. Raises UsageError where no weight is under that name.
    """
    if head is None:
        head = head_name(module)
    adapting = [name for name in learned(module) if within(name, head)]
    if not adapting:
        raise UsageError(f"no weights under head={head!r}; name a submodule of the network")
    return MAML(module, steps, rule, loss, proximal, adapting, kinds)
