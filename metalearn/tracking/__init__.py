"""What happens in a run, recorded: local files, Weights & Biases, the terminal."""

from .local import JsonLines, read_records
from .progress import Progress
from .tracker import RunInfo, Sink, Status, Tracker
from .wandb import WandB

__all__ = [
    "JsonLines",
    "Progress",
    "RunInfo",
    "Sink",
    "Status",
    "Tracker",
    "WandB",
    "read_records",
]
