"""What was used, what is left, and an allocator that keeps what was freed."""

import subprocess
import sys

import pytest
import torch

from metalearn import memory

CPU = torch.device("cpu")
MIB = 2**20


def test_a_peak_is_seen_and_forgotten():
    memory.reset_peak_memory(CPU)
    before = memory.peak_memory_bytes(CPU)
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    del block
    assert memory.peak_memory_bytes(CPU) - before > 48 * MIB
    assert memory.used_memory_bytes(CPU) <= memory.peak_memory_bytes(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo is Linux's")
def test_free_memory_is_less_than_all():
    free = memory.free_memory_bytes(CPU)
    assert free is not None and 64 * MIB < free < 2**50


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    script = (
        "import resource, torch\n"
        "from metalearn.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(5):\n"
        "        torch.ones(64 * 2**20, dtype=torch.uint8)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults()\n"
        "assert keep_freed_memory()\n"
        "faults()\n"
        "print(first, faults())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    default, kept = map(int, ran.stdout.split())
    assert kept * 10 < default
