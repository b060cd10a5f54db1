"""An adapted network as a file that plain torch, or an ONNX runtime, loads.

What is written is traced from the algorithm's own `predict`: images `[B, C, H, W]` in [0, 1] in, of
any B; logits out, divided by the temperature, so that their softmax is the confidence. It is loaded
again and held to what it was traced from before it is left in place.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.errors import UsageError, reason_of
from metalearn.evaluation.own_images.adapter import Adapter
from metalearn.functional.outputs import tensor_of
from metalearn.runtime.files import write_atomic
from metalearn.types import Meta, Params

TOLERANCE = 1e-5  # of the largest output, where that is above 1
_ONNX = ("onnx", "onnxscript", "onnxruntime")
FILES = {"torch": "network.pt2", "onnx": "network.onnx"}


class Answering(nn.Module):
    """`adapter` after adapting, with every tensor that it needs as a buffer.

    fast: what adapting gave; None for the features alone. unused: buffers that no answer needs.
    """

    def __init__(
        self, adapter: Adapter, fast: Params | None, ways: int, temperature: float,
        unused: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        super().__init__()
        # In a list: the network inside is traced through, and its own weights are not asked for.
        self._adapter, self._ways, self._temperature = [adapter], ways, temperature
        self._places: dict[str, dict[str, Tensor | str]] = {}
        meta = adapter.meta
        parts = {"init": meta["init"], "hyper": meta["hyper"], "buffers": meta["buffers"]}
        parts["fast"] = fast or {}
        for part, tensors in parts.items():
            places: dict[str, Tensor | str] = {}
            for name, t in tensors.items():
                key = f"{part}_{name}".replace(".", "_")
                while hasattr(self, key):
                    key += "_"
                places[name] = t if key in unused else key
                if key not in unused:
                    self.register_buffer(key, t.detach().clone())
            self._places[part] = places
        self._adapted = fast is not None

    def _tensors(self, part: str) -> Params:
        return {
            name: getattr(self, place) if isinstance(place, str) else place
            for name, place in self._places[part].items()
        }

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, N]` of images `[B, C, H, W]` in [0, 1]; without classes features `[B, D]`."""
        (adapter,) = self._adapter
        x = images if adapter.transform.is_identity else adapter.transform(images)
        init, hyper, buffers = (self._tensors(part) for part in ("init", "hyper", "buffers"))
        if not self._adapted:
            return tensor_of(adapter.algo.net.apply({**buffers, **init}, x)).flatten(1)
        meta = Meta(init=init, hyper=hyper, buffers=buffers)
        logits = tensor_of(adapter.algo.predict(meta, self._tensors("fast"), x))
        return logits[:, : self._ways] / self._temperature


def traced(
    adapter: Adapter, fast: Params | None, ways: int, temperature: float, x: Tensor
) -> torch.export.ExportedProgram:
    """The program of `Answering`, of any number of images. x: of some, `[B, C, H, W]`.

    Raises UsageError where it cannot be traced.
    """

    def program(unused: frozenset[str]) -> Any:
        module = Answering(adapter, fast, ways, temperature, unused).eval()
        return torch.export.export(
            module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
        )

    with torch.no_grad(), adapter.algo.net.evaluating(), _quiet():
        try:
            whole = program(frozenset())
            used = {n.name for n in whole.graph.nodes if n.op == "placeholder" and n.users}
            specs = whole.graph_signature.input_specs
            unused = {s.target for s in specs if s.arg.name not in used and s.target}
            return program(frozenset(unused)) if unused else whole
        except UsageError:
            raise
        except Exception as error:  # of a tracer, on anybody's network
            raise UsageError(
                f"torch.export cannot trace this network: {reason_of(error)}; use metalearn predict"
            ) from None


def as_torch(program: torch.export.ExportedProgram) -> bytes:
    """What `torch.export.load` reads."""
    data = io.BytesIO()
    for node in program.graph.nodes:  # the lines of code, by their paths on this machine
        node.meta.pop("stack_trace", None)
    with _quiet():
        torch.export.save(program, data)
    return data.getvalue()


def as_onnx(program: torch.export.ExportedProgram) -> bytes:
    """A model of one file. Raises UsageError where its packages are missing, or it cannot be."""
    if missing := [name for name in _ONNX if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"format=onnx needs {', '.join(missing)}: pip install 'metalearn-torch[onnx]', or "
            "leave format=onnx out"
        )
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        try:
            made = torch.onnx.export(program, dynamo=True, verbose=False)
            assert made is not None
            return made.model_proto.SerializeToString()
        except Exception as error:  # of an exporter, on anybody's network
            reason = reason_of(error)
            raise UsageError(f"the ONNX exporter cannot take this network: {reason}") from None


def run_torch(data: bytes) -> Callable[[Tensor], np.ndarray]:
    """From images to outputs, by what was written."""
    with _quiet():
        loaded = torch.export.load(io.BytesIO(data)).module()
    return lambda x: loaded(x).detach().numpy()


def run_onnx(data: bytes) -> Callable[[Tensor], np.ndarray]:
    """As `run_torch`, by onnxruntime."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]
    return lambda x: session.run(None, {name: x.numpy()})[0]


WAYS = {"torch": (as_torch, run_torch), "onnx": (as_onnx, run_onnx)}
"""By format: what writes a program, and what runs what was written."""


def left_in_place(path: Path, data: bytes, run: Callable[[Tensor], np.ndarray], x: Tensor,
                  want: np.ndarray) -> float:  # fmt: skip
    """Write `data` where it answers `x` `[B, C, H, W]` as `want` `[B, N]`, whatever the batch; the
    largest difference. Raises UsageError where it does not, and writes nothing."""
    sizes = sorted({1, min(2, len(x)), len(x)})
    try:
        worst = max(float(np.abs(run(x[:size]) - want[:size]).max()) for size in sizes)
    except Exception as error:  # of a runtime
        told = f"what was exported as {path.name} does not run: {reason_of(error)}"
        raise UsageError(f"{told}; use metalearn predict") from None
    if not worst <= TOLERANCE * max(1.0, float(np.abs(want).max())):
        raise UsageError(
            f"what was exported as {path.name} answers otherwise, by {worst:.2g}; it is not "
            "written: use metalearn predict"
        )
    write_atomic(path, data)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters warn of and log."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
