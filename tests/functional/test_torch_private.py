"""What begins with an underscore in torch stands in one file, and answers on this torch."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.functional import torch_private

PACKAGE = Path(torch_private.__file__).parents[1]
HOME = PACKAGE / "functional" / "torch_private.py"
KINDS = (nn.Module, nn.Conv2d, torch.Tensor, torch.UntypedStorage, torch.Generator)
MEMBERS = {
    name
    for names in (*map(dir, KINDS), vars(nn.Module()))
    for name in names
    if name.startswith("_") and not name.startswith("__")
}
"""Such attributes of torch's objects."""


def private(text: str) -> list[str]:
    """The names of torch's that begin with an underscore, as far as one can see them in code."""
    tree = ast.parse(text)
    roots, found = set[str](), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = {alias.name: alias.asname or "torch" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{a.name}": a.asname or a.name for a in node.names}
            paths = names
        else:
            continue
        ours = {path: name for path, name in paths.items() if path.split(".")[0] == "torch"}
        roots |= set(ours.values())
        found += [path for path in ours if "._" in path]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name, root = node.attr, ast.unparse(node).partition(".")[0]
        hidden = name.startswith("_") and not name.startswith("__")
        own = f"def {name}(" in text or f"self.{name} = " in text
        if (hidden and root in roots) or (name in MEMBERS and not own):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import torch._dynamo",
        "from torch import _C",
        "from torch.nn.modules.conv import _ConvNd",
        "def f():\n    from torch._inductor.ir import TensorBox",
        "import torch\ntorch.ops.mkldnn._linear_pointwise(1)",
        "from torch import nn\nx = nn.modules.batchnorm._NormBase",
        "def f(module): return module._buffers",
    ],
)
def test_a_private_name_is_seen(text: str) -> None:
    assert len(private(text)) == 1
    assert private("import torch\nfrom torch.func import grad\ntorch.Tensor.__add__") == []


def test_no_other_file_knows_them() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path != HOME and (names := private(path.read_text()))
    }
    assert found == {}
    assert len(private(HOME.read_text())) >= 10
    assert "from metalearn" not in HOME.read_text()


def test_the_classes_are_torchs() -> None:
    assert isinstance(nn.BatchNorm2d(2), torch_private.BatchNormBase)
    assert isinstance(nn.InstanceNorm2d(2), torch_private.InstanceNormBase)
    assert issubclass(torch_private.BatchNormBase, torch_private.NormBase)
    assert issubclass(torch_private.InstanceNormBase, torch_private.NormBase)
    assert isinstance(nn.Conv1d(2, 2, 1), torch_private.ConvolutionBase)
    assert isinstance(nn.Dropout(), torch_private.DropoutBase)
    assert not isinstance(nn.Linear(2, 2), torch_private.ConvolutionBase)


def test_a_part_with_two_names_is_there_twice() -> None:
    layer = nn.Linear(2, 2)
    assert torch_private.children(nn.Sequential(layer, layer)) == {"0": layer, "1": layer}


def test_a_convolution_of_its_own() -> None:
    class Own(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return input

    assert torch_private.has_own_convolution(Own)
    assert not torch_private.has_own_convolution(nn.Conv2d)


def test_versions_and_storages() -> None:
    a = torch.zeros(2)
    before = torch_private.version(a)
    a.add_(1)
    assert torch_private.version(a) == before + 1
    key = torch_private.storage_key(a.untyped_storage())
    assert torch_private.storage_key(a[1:].untyped_storage()) == key
    assert torch_private.storage_key(torch.zeros(2).untyped_storage()) != key


def test_trees_and_the_mode() -> None:
    leaves, spec = torch_private.pytree.tree_flatten(({"a": 1}, None))
    assert leaves == [1, None]
    assert torch_private.pytree.tree_unflatten(leaves, spec) == ({"a": 1}, None)

    class Count(torch_private.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    with Count() as count:
        torch.ones(2) + 1
    assert count.calls == 2


def test_the_transforms_around_a_tensor() -> None:
    found = torch_private.functorch()
    assert found is not None
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(found.is_functorch_wrapped_tensor(x))
        seen.append(found.is_functorch_wrapped_tensor(found.get_unwrapped(x)))
        return x * 1

    torch.vmap(f)(torch.ones(3))
    assert seen == [True, False]


def test_the_same_layout() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(4)
    same = torch_private.same_layout([a, b])
    assert same is not None
    assert same(torch.ones(2, 3), torch.ones(4))
    assert not same(torch.ones(3, 2).mT, torch.ones(4))
    assert not same(torch.ones(2, 3, dtype=torch.float64), torch.ones(4))


def test_the_compiler() -> None:
    config = torch_private.functorch_config()
    with config.patch(enable_autograd_cache=False):
        assert config.enable_autograd_cache is False
    compile_fx, inner = torch_private.compile_fx()
    assert compile_fx.__name__ == "compile_fx" and callable(inner)
    lowering = torch_private.lowering()
    assert callable(lowering.register_lowering) and callable(lowering.permute)
    assert callable(lowering.TensorBox.create) and callable(lowering.LinearUnary.create)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_product_by_onednn() -> None:
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    torch.testing.assert_close(torch_private.onednn_linear(x, w), x @ w.mT)


def test_a_missing_name_is_one_line() -> None:
    with pytest.raises(ImportError) as caught:
        torch_private._needed("torch._inductor.ir.NoSuchBox")
    assert str(caught.value) == (
        f"torch {torch.__version__} has no torch._inductor.ir.NoSuchBox; install torch 2.11 to 2.15"
    )
