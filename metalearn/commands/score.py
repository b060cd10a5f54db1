"""`metalearn score <name>`: the contract and a fixed short measurement of a method, as one line.

    {"method": ..., "contract": [what it does not keep to], "accuracy": ..., "half_width": ..., ...}

For people, and for programs that write methods: exit code 0 and a line of JSON whenever the method
could be made; `contract` is empty for one that keeps it. Measured is glyphs, 5-way 1-shot, after
100 meta-steps of 4 tasks from seed 0, on 100 test episodes.
"""

import io
import json
import tempfile
from pathlib import Path

from rich.console import Console

from metalearn.benchmarks.contract import contract
from metalearn.commands import train
from metalearn.commands.building.config import compose
from metalearn.commands.building.methods import built, find
from metalearn.errors import UsageError
from metalearn.evaluation.statistics import measure_of

MEASURED = (
    *("dataset=glyphs", "dataset.classes=200", "episodes.ways=5", "episodes.shots=1", "seed=0"),
    *(
        "backbone=conv4_strided",
        "backbone.filters=16",
        "training.steps=100",
        "training.meta_batch=4",
    ),
    *("training.validate_every=100", "evaluation.validation_episodes=20", "device=cpu"),
    *("evaluation.episodes=100", "evaluation.untrained=true", "batching=loop", "tracker=disabled"),
)
"""Of the short measurement."""
_KEPT = ("seconds", "tasks_per_second", "weights_sha256")


def main(arguments: list[str], console: Console) -> None:
    """`metalearn score <name> [overrides of the measurement]`."""
    if not arguments or "=" in arguments[0]:
        raise UsageError("write metalearn score <name>; see metalearn list algorithms")
    name, *overrides = arguments
    print(json.dumps(score(name, overrides)))


def score(name: str, overrides: list[str]) -> dict[str, object]:
    """What `metalearn score` prints. Raises UsageError."""
    group, path = find(name)
    chosen = [f"algorithm={name}"]
    if group == "classifier":
        chosen = ["algorithm=metric", f"classifier={name}"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = compose([*chosen, *MEASURED, *overrides, f"run_dir={run}"])
        outputs = config["outputs"] is not None
        broken = contract(lambda module: built(group, path, module, module), outputs)
        train.run(config, Console(file=io.StringIO()))
        if not (run / "result.json").is_file():
            raise UsageError("the measurement was stopped before its end; run it again")
        result = json.loads((run / "result.json").read_text())
    measure = measure_of(result)
    return {
        "method": f"{group}={name}",
        "contract": broken,
        measure: result[measure],
        "half_width": result[f"{measure}_half_width"],
        "untrained": result[f"untrained_{measure}"],
        "episodes": result["episodes"],
        "transductive": bool(result.get("transductive")),
        **{key: result[key] for key in _KEPT},
    }
