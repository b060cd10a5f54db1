"""Records as a race writes them, made by hand."""

from dataclasses import asdict

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.speed import Settings

SETTINGS = Settings(("ours", "learn2learn"), ("default", "tuned"), threads=1, repeats=3)
MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gib": 8.0,
    "flags": ["avx2"],
    "gpu": None,
    "python": "3.11.7",
    "system": "Linux 6",
    "versions": {"torch": "2.15.0", "jax": None},
    "matmul": {"float32": 1e11, "bfloat16": 5e11},
}


def worker(framework: str, allocator: str, seconds: list[float], reason: str = "") -> dict:
    return {
        "framework": framework,
        "allocator": allocator,
        "reason": reason,
        "first": 3.0,
        "steady": 1.0,
        "memory": 50_000_000,
        "gradient_error": 1e-6,
        "cosine": 1.0,
        "seconds": seconds,
    }


def record(cell: Cell, ours: float = 1.0, peer: float = 2.0, tuned_peer: float = 1.5) -> dict:
    """ours and learn2learn, in seconds a meta-step with quartiles 10% away."""

    def around(middle: float) -> list[float]:
        return [0.8 * middle, middle, 1.2 * middle]

    workers = {
        "ours tuned": worker("ours", "tuned", around(ours)),
        "learn2learn default": worker("learn2learn", "default", around(peer)),
        "learn2learn tuned": worker("learn2learn", "tuned", around(tuned_peer)),
        "higher default": worker("higher", "default", [], "higher is not installed"),
    }
    return {
        "cell": asdict(cell),
        "settings": SETTINGS.saved(),
        "machine": MACHINE,
        "status": "measured",
        "reason": "",
        "flops": 10**9,
        "workers": workers,
    }
