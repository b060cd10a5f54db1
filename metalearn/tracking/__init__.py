"""Records of a run: local files, Weights & Biases, the terminal."""

from metalearn.tracking.local import JsonLines, read_records
from metalearn.tracking.progress import Progress
from metalearn.tracking.tracker import RunInfo, Sink, Status, Tracker
from metalearn.tracking.wandb import WandB

__all__ = ["JsonLines", "Progress", "RunInfo", "Sink", "Status", "Tracker", "WandB", "read_records"]
