"""The page of a published run, in the form that the hub reads: YAML, then Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from metalearn import __distribution__, __version__
from metalearn.evaluation.statistics import SHARES, measure_of

_ROWS = (
    ("algorithm", "algorithm"), ("gradient", "gradient"), ("backbone", "backbone"),
    ("classifier", "classifier"), ("adaptation", "adaptation"), ("head", "head"),
    ("loss_function", "loss"), ("starting_weights", "from weights"), ("norm_policy", "norm policy"),
    ("transductive", "sees a task's queries together"), ("sampling", "sampling"),
    ("split", "split"), ("episodes", "test episodes"), ("queries", "queries"),
    ("manifest_hash", "manifest"), ("dataset_hash", "data set"), ("seed", "seed"),
    ("steps", "meta-steps"), ("selected_step", "selected at"), ("seconds", "seconds of training"),
    ("commit", "commit"), ("torch", "torch"), ("weights_sha256", "weights, sha256"),
)  # fmt: skip


def model_card(result: Mapping[str, Any], pictures: Sequence[str], manifest: bool) -> str:
    """Of a run whose result names nothing personal."""
    measure = measure_of(result)
    mean, half = result[measure], result[f"{measure}_half_width"]
    ways = result.get("ways")
    task = f"{ways}-way {result['shots']}-shot" if ways else f"{result['shots']} points"
    scale, digits = (100, 2) if measure in SHARES else (1, 4)
    figure = f"{scale * mean:.{digits}f} ± {scale * half:.{digits}f}"
    title = f"{result['algorithm']} on {result['dataset']}, {task}"
    data = {"name": str(result["dataset"]), "type": str(result["dataset"])}
    metric = {"type": measure if ways else "mse", "value": round(float(mean), 6)}
    metric["name"] = f"{measure}, mean of {result['episodes']} test episodes"
    kind = "image-classification" if manifest else "other"
    about = {"task": {"type": kind, "name": task}, "dataset": data, "metrics": [metric]}
    head = {
        "library_name": "metalearn",
        "tags": ["metalearn", "meta-learning", "few-shot-learning", str(result["algorithm"])],
        "model-index": [{"name": title, "results": [about]}],
    }
    unit = "mean squared error" if measure == "loss" else f"% {measure}".removesuffix(" accuracy")
    told = [(name, result[key]) for key, name in _ROWS if result.get(key) not in (None, "")]
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in told)
    kept = " The episodes are listed in `manifest.json`." if manifest else ""
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        f"**{figure} {unit}** over {result['episodes']} test episodes, with half of the 95% "
        f"interval (Student's t over episodes; one seed).{kept}",
        "    metalearn pull <this place> model\n    metalearn evaluate run=model",
        f"measures it again, with {__distribution__} {__version__}: the same digits on a CPU. "
        "Where the data set is not downloaded, add `dataset.root=<folder>`. `SHA256SUMS` has the "
        "sha256 of every file, `episodes.csv` every episode, `config.yaml` every setting.",
        "| | |\n|---|---|\n" + rows,
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    text = {True: "yes", False: "no"}.get(value) if isinstance(value, bool) else None
    text = text or (f"{value:.1f}" if isinstance(value, float) else str(value))
    return text.replace("|", r"\|").replace("\n", " ")
