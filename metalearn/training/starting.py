"""What a run tells of the weights that it starts from."""

import json
from pathlib import Path

from rich.console import Console

from metalearn.backbones.weights import Report
from metalearn.runtime.files import write_atomic

NAMES = "weight_names.json"
"""In a run folder: the name in the network, the name in the file, where these are others."""


def tell(report: Report | None, folder: Path, console: Console) -> None:
    """Print `report`, None for a random start, and keep the names that it matched by order."""
    if report is None:
        return
    console.print(str(report), soft_wrap=True, highlight=False)
    if report.names:
        write_atomic(folder / NAMES, json.dumps(report.names, indent=1))
