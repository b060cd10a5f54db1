"""All that metalearn uses of torch under a name that begins with an underscore.

Such a name may change with any version, so it stands here and nowhere else
(`tests/functional/test_torch_private.py`). Each says what happens where it is missing. All were
seen in torch 2.11.0, 2.13.0 and 2.15.0, by running that test there.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Loaded by `import torch` itself, and no newer than torch 2.0. Missing: `import metalearn` fails.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvolutionBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNormBase
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "BatchNormBase",
    "ConvolutionBase",
    "DropoutBase",
    "InstanceNormBase",
    "NormBase",
    "TorchDispatchMode",
    "children",
    "compile_fx",
    "functorch",
    "functorch_config",
    "has_own_convolution",
    "lowering",
    "onednn_linear",
    "pytree",
    "same_layout",
    "storage_key",
    "version",
]


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The parts of `module` by name: one that has two names is there twice, other than in
    `named_children`. Missing: AttributeError when a network is made pure."""
    return module._modules


def has_own_convolution(kind: type[nn.Conv2d]) -> bool:
    """Whether a class convolves in a way of its own. Missing: AttributeError at LoRA on it."""
    return kind._conv_forward is not nn.Conv2d._conv_forward


def version(tensor: Tensor) -> int:
    """How often `tensor` was changed in place. Missing: AttributeError where a network is
    searched for what has no second derivative."""
    return tensor._version


def storage_key(storage: torch.UntypedStorage) -> int:
    """The same number for the same memory, of an empty storage too. Missing: AttributeError in
    `metalearn bench engine part=memory`."""
    return storage._cdata


@functools.cache
def functorch() -> Any:
    """torch's `is_functorch_wrapped_tensor(x)` and `get_unwrapped(x)`, which tell the transforms
    of `torch.func` around a tensor; None where missing: then no convolution is taken for one of
    constant images, and its batch norm reads the output once more."""
    found = getattr(torch._C, "_functorch", None)
    names = "is_functorch_wrapped_tensor", "get_unwrapped"
    return found if all(hasattr(found, name) for name in names) else None


def same_layout(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Whether others have the types, shapes and strides of `tensors`, in less than a microsecond:
    what torch's own compiler asks by. None where missing: then every call looks up the compiled
    piece anew, which a small network's step feels."""
    try:
        guards = importlib.import_module("torch._C._dynamo.guards").TensorGuards
        # It crashes where these are left out.
        return guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    except (ImportError, AttributeError, TypeError):
        return None


def functorch_config() -> Any:
    """The settings of AOTAutograd. Missing: an ImportError names it when a piece is compiled;
    batching=loop and batching=vmap do without."""
    return _needed("torch._functorch.config")


def compile_fx() -> tuple[Any, Any]:
    """`compile_fx` and `compile_fx_inner` of torch's compiler, which take seconds to import.
    Missing: as with `functorch_config`."""
    module = "torch._inductor.compile_fx."
    return _needed(module + "compile_fx"), _needed(module + "compile_fx_inner")


class Lowering(NamedTuple):
    """What one tells torch's compiler with how an operation is to be called from C++."""

    TensorBox: Any
    permute: Any
    register_lowering: Any
    LinearUnary: Any


def lowering() -> Lowering:
    """Of torch's compiler. Missing: as with `functorch_config`."""
    return Lowering(
        _needed("torch._inductor.ir.TensorBox"),
        _needed("torch._inductor.lowering.permute"),
        _needed("torch._inductor.lowering.register_lowering"),
        _needed("torch._inductor.mkldnn_ir.LinearUnary"),
    )


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.mT` by oneDNN, float32 on a CPU. Missing: an ImportError names it, on the
    processors for which `engine.matmul` prefers oneDNN."""
    try:
        linear = torch.ops.mkldnn._linear_pointwise
    except AttributeError:
        raise ImportError(_absent("torch.ops.mkldnn._linear_pointwise")) from None
    return linear(x, weight, None, "none", [], "")


def _needed(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ImportError(_absent(path)) from None


def _absent(path: str) -> str:
    return f"torch {torch.__version__} has no {path}; install torch 2.11 to 2.15"
