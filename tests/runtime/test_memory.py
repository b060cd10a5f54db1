"""What was used, what is left, and an allocator that keeps what was freed."""

import subprocess
import sys

import pytest
import torch

from metalearn.runtime import memory

CPU = torch.device("cpu")
MIB = 2**20


def printed(script: str) -> list[int]:
    """The numbers that a fresh process prints: this one's allocator may hold what it freed."""
    ran = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=600
    )
    return [int(word) for word in ran.stdout.split()]


def test_a_peak_is_seen_and_forgotten():
    before, seen, used, forgotten = printed(
        "import torch\n"
        "from metalearn.runtime.memory import *\n"
        "cpu = torch.device('cpu')\n"
        "reset_peak_memory(cpu)\n"
        "print(peak_memory_bytes(cpu))\n"
        "block = torch.ones(64 * 2**20, dtype=torch.uint8)\n"
        "del block\n"
        "print(peak_memory_bytes(cpu), used_memory_bytes(cpu))\n"
        "reset_peak_memory(cpu)\n"
        "print(peak_memory_bytes(cpu))\n"
    )
    assert seen - before > 48 * MIB
    assert seen - used > 48 * MIB
    assert seen - forgotten > 48 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo is Linux's")
def test_free_memory_is_less_than_all():
    free = memory.free_memory_bytes(CPU)
    assert free is not None and 64 * MIB < free < 2**50


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    script = (
        "import resource, torch\n"
        "from metalearn.runtime.memory import keep_freed_memory\n"
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
    default, kept = printed(script)
    assert kept * 10 < default
