"""What a network returns, as a tensor or a dict of tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Outputs


def outputs_of(returned: Any) -> Outputs:
    """A tensor; the tensors of a dict, such as transformers' ModelOutput; `.logits` of another
    object; the only tensor of a tuple. Raises UsageError for anything else."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        found = {name: t for name, t in returned.items() if isinstance(t, Tensor)}
        if found:
            return found
    if isinstance(logits := getattr(returned, "logits", None), Tensor):
        return logits
    kind = type(returned).__name__
    if isinstance(returned, tuple | list):
        alone = [t for t in returned if isinstance(t, Tensor)]
        if len(alone) == 1:
            return alone[0]
        kind = f"{kind} of {len(alone)} tensors"
    raise UsageError(f"the network returns a {kind}; return the logits, or a dict with `logits`")


def tensor_of(outputs: Outputs) -> Tensor:
    """The outputs that are meant: of a dict its `logits`, or its only tensor.

    Raises UsageError where a dict has several, none of them called so.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = [outputs["logits"]] if "logits" in outputs else list(outputs.values())
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"the network returns {', '.join(outputs)}; call one of them logits, or give a loss of "
        "your own"
    )
