"""How much a computation does, counted: the same on every machine, as no time is."""

from contextlib import suppress
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from metalearn.functional.torch_private import TorchDispatchMode


class Counted(TorchDispatchMode):
    """While it is entered: operations, the floating-point operations of products and convolutions
    (a multiplication and an addition are two), and whether anything was drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = 0
        self.random = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, counted."""
        made = func(*args, **(kwargs or {}))
        self.operations += 1
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            with suppress(Exception):  # of shapes that torch's formula does not know
                self.flops += formula(*args, **(kwargs or {}), out_val=made)
        self.random = self.random or torch.Tag.nondeterministic_seeded in func.tags
        return made
