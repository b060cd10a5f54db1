"""All that metalearn uses of torch under a name that begins with an underscore.

Such a name may change with any version, so it stands here and nowhere else
(`tests/functional/test_torch_private.py`). Each says what happens where it is missing. All were
seen in torch 2.11.0, 2.13.0 and 2.15.0, by running that test there.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

# Loaded by `import torch` itself, and no newer than torch 2.0. Missing: `import metalearn` fails.
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvolutionBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNormBase
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

AtenOperation = (OpOverload, OpOverloadPacket)
weight_norm_of_torch = getattr(torch, "_weight_norm")  # noqa: B009, it is not exported

__all__ = [
    "AtenOperation",
    "BatchNormBase",
    "ConvolutionBase",
    "DropoutBase",
    "InstanceNormBase",
    "NormBase",
    "TorchDispatchMode",
    "children",
    "compile_fx",
    "compiled_from",
    "functorch",
    "functorch_config",
    "has_backward_hook",
    "has_forward_pre_hook",
    "has_hook",
    "has_own_convolution",
    "keeping_machine_code",
    "kept_by_hook",
    "lowering",
    "onednn_linear",
    "plain_checkpoints",
    "pytree",
    "same_layout",
    "storage_key",
    "version",
    "weight_norm_of_torch",
]


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The parts of `module` by name: one that has two names is there twice, other than in
    `named_children`. Missing: AttributeError when a network is made pure."""
    return module._modules


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that `torch.compile` was given, of what it returned; None of any other. Missing: a
    compiled network is taken as it is, and refused when it is copied or called."""
    found = getattr(module, "_orig_mod", None)
    return found if isinstance(found, nn.Module) else None


def has_backward_hook(module: nn.Module) -> bool:
    """Whether `module` has a hook on its backward pass. Missing: AttributeError where a network is
    checked."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def kept_by_hook(module: nn.Module, take: bool = False) -> dict[str, Callable[[nn.Module], Tensor]]:
    """The tensors that hooks of `torch.nn.utils` compute before each forward of `module` and keep
    beside its parameters, by name, and what computes each: pruning, and weight and spectral norm as
    they were before parametrizations. take: and the hooks are gone. Missing: AttributeError when a
    network is made pure; of the names inside of hooks, the hooks stay as they are."""
    found = {}
    for key, hook in list(module._forward_pre_hooks.items()):
        if (name := getattr(hook, "_tensor_name", None)) and hasattr(hook, "apply_mask"):
            found[name] = hook.apply_mask
        elif (name := getattr(hook, "name", None)) and hasattr(hook, "compute_weight"):
            powers = hasattr(hook, "n_power_iterations")
            found[name] = functools.partial(_weight_of, hook, powers)
        else:
            continue
        if take:
            del module._forward_pre_hooks[key]
    return found


def _weight_of(hook: Any, powers: bool, module: nn.Module) -> Tensor:
    return hook.compute_weight(module, *([module.training] if powers else []))


def has_hook(module: nn.Module) -> bool:
    """Whether `module` has any hook. Missing: as with `has_backward_hook`."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward) or has_backward_hook(module)


def has_forward_pre_hook(module: nn.Module) -> bool:
    """Whether something runs before each forward of `module`. Missing: as with `kept_by_hook`."""
    return bool(module._forward_pre_hooks)


_GENERATORS = (
    "_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl",
)  # fmt: skip


@functools.cache
def plain_checkpoints(inside: Callable[[], bool]) -> None:
    """Let `torch.utils.checkpoint` call its function and keep nothing back where `inside()`: its
    hooks on saved tensors, and its autograd function, do not go with `torch.func`. Missing: a
    network that checkpoints is refused when it is checked."""

    def nothing() -> Iterator[None]:
        yield

    home = torch.utils.checkpoint
    recomputed = home.CheckpointFunction.apply

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if inside() else recomputed(function, preserve, *args)

    home.CheckpointFunction.apply = staticmethod(apply)  # type: ignore[method-assign]
    for name in _GENERATORS:
        if (before := getattr(home, name, None)) is not None:

            def generator(*args: Any, before=before, **kwargs: Any) -> Any:
                return nothing() if inside() else before(*args, **kwargs)

            setattr(home, name, generator)


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


def keeping_machine_code(of: str) -> AbstractContextManager[Any]:
    """Around a compilation whose machine code torch keeps on disk, for the next process that
    compiles the same graph: it does so where it knows of an environment of symbols, although no
    size here is one. of: what decides the code beside graph and settings. Missing: every process
    compiles anew."""
    try:
        guards = importlib.import_module("torch._guards")
        mode = importlib.import_module("torch._subclasses").FakeTensorMode
        shapes = importlib.import_module("torch.fx.experimental.symbolic_shapes").ShapeEnv
        within = guards.TracingContext(mode(shape_env=shapes(), static_shapes=True))
        both = guards.tracing(within), _needed("torch.compiler.config").patch(cache_key_tag=of)
    except (ImportError, AttributeError, TypeError):
        return nullcontext()
    stack = ExitStack()
    for context in both:
        stack.enter_context(context)
    return stack


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
