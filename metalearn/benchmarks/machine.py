"""The machine under a measurement: what it is, what it can do, its memory."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from metalearn.engine.matmul import mkl_at_half_speed, product
from metalearn.runtime.memory import (
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
    used_memory_bytes,
)

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "avx_vnni")


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(device: str) -> dict[str, object]:
    """Processor, cores, memory, instruction sets and versions."""
    cpu = _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    flags = _field("/proc/cpuinfo", "flags").split()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(_kib("/proc/meminfo", "MemTotal") / 2**20, 1),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {name: version(PACKAGES[name]) for name in PACKAGES},
    }


_PEERS = ("torch", "learn2learn", "higher", "torchopt", "jax", "jaxlib", "timm")
PACKAGES = {"metalearn": "metalearn-torch", **{name: name for name in _PEERS}}
"""The distribution of each import."""


def version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def matmul_rates(device: str, max_side: int = 2048) -> dict[str, float]:
    """FLOP/s of a square matrix product in float32 and in bfloat16, median of 4; and in float32 by
    oneDNN, where torch multiplies by an MKL at half its speed.

    max_side: of the matrices; they are smaller where a product of that size would take long
    (bfloat16 on a processor that only emulates it).
    """
    rates = {"float32": _matmul_rate(device, torch.float32, max_side)}
    if device == "cpu" and mkl_at_half_speed():
        rates["float32 by oneDNN"] = _matmul_rate(device, torch.float32, max_side, product)
    return {**rates, "bfloat16": _matmul_rate(device, torch.bfloat16, max_side)}


_LONG = 0.5  # seconds


def _matmul_rate(
    device: str, dtype: torch.dtype, max_side: int, multiply: Callable[..., object] = torch.mm
) -> float:
    side = max_side // 8
    while True:
        a, times = torch.rand(side, side, device=device).to(dtype), []
        for _ in range(6):
            synchronise(device)
            start = time.perf_counter()
            multiply(a, a)
            synchronise(device)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times[2:])
        if side >= max_side or 8 * seconds > _LONG:
            return 2 * side**3 / seconds
        side *= 2


def synchronise(device: str) -> None:
    """Wait until a CUDA device has finished its work; nothing on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def trim() -> None:
    """Return unused memory of this process to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak_growth(device: str, run: Callable[[], object]) -> int | None:
    """The peak of memory during `run`, in bytes above what was in use before it: of the resident
    set of the process (Linux), or of torch's allocator on CUDA. None where no system tells it."""
    trim()
    on = torch.device(device)
    told, before = reset_peak_memory(on), used_memory_bytes(on)
    run()
    synchronise(device)
    return peak_memory_bytes(on) - before if told else None


def limit_memory(share: float = 0.8) -> None:
    """Make this process fail, rather than another one, when memory runs out."""
    used = _kib("/proc/self/status", "VmData") * 1024
    if free := int(memory_available() * share):
        resource.setrlimit(resource.RLIMIT_DATA, (free + used, resource.RLIM_INFINITY))
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def memory_available() -> int:
    """Bytes of memory that are still free; 0 where the system does not say."""
    return free_memory_bytes(torch.device("cpu")) or 0


def _field(path: str, name: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return ""


def _kib(path: str, name: str) -> int:
    return int((_field(path, name).split() or ["0"])[0])
