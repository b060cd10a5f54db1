"""`metalearn new algorithm|classifier <name> [folder]`: a package with a working method to change.

It holds the method, its config and its test, and registers by entry point: after `pip install -e`
of the folder the method has its name in every command.
"""

import re
from pathlib import Path
from string import Template

from rich.console import Console

from metalearn import __distribution__
from metalearn.commands.building.config import conf_files
from metalearn.commands.building.methods import GROUPS
from metalearn.errors import UsageError, nearest
from metalearn.training.stage import teller

ALGORITHM = '''\
"""$title: what it does, in a line.

    theta_{k+1} = theta_k - alpha * grad L_support(theta_k)

Authors: Title, year.
"""

from metalearn import tree
from metalearn.algorithms.losses import cross_entropy
from metalearn.functional import pure
from metalearn.inner import sgd
from metalearn.types import Meta


class $title:
    """One task. module: from `[B, *X]` to logits `[B, N]`."""

    kinds, transductive = ("exact", "truncated"), False

    def __init__(self, module, steps: int = 1, rule=sgd(0.1), loss=cross_entropy):
        self.net, self.steps, self.rule, self.loss = pure(module), steps, rule, loss

    def init(self):  # what is meta-learned
        weights = tree.clone(self.net.params)
        hyper = self.rule.hyper(weights, self.steps)
        return Meta(init=weights, hyper=hyper, buffers=tree.clone(self.net.buffers))

    def begin(self, meta, given):  # what adapts, at its start
        return meta["init"]

    def inner_loss(self, meta, fast, given, step):  # what inner step `step` descends on
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta, fast, given, step):  # and what else the queries need
        support, weights = given.support, {**meta["buffers"], **fast}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def outer_loss(self, meta, fast, query):
        outputs = self.net.apply({**meta["buffers"], **fast}, query.x, query.weight)
        return self.loss(outputs, query)

    def step_weights(self, meta):
        return None

    def predict(self, meta, fast, x):
        return self.net.apply({**meta["buffers"], **fast}, x)
'''

CLASSIFIER = '''\
"""$title: what it does, in a line.

    p(y = n | x) = softmax over n of  -|f(x) - c_n|^2 / temperature,   c_n the mean of class n

Authors: Title, year.
"""

from dataclasses import dataclass, field

from metalearn.classifiers.classes import class_means, masked


@dataclass(frozen=True)
class $title:
    """On the features of one task. temperature: divides the logits."""

    temperature: float = 1.0
    transductive: bool = field(default=False, init=False)

    def hyper(self, features=None):  # what is meta-learned, in float64
        return {}

    def fit(self, hyper, support, unlabelled=None):  # of features [S, D]; row n is class n
        means, counts = class_means(support.x, support)
        return {"means": means, "counts": counts}

    def logits(self, hyper, state, features):  # [Q, S] of features [Q, D]
        distances = (features.unsqueeze(1) - state["means"]).square().sum(2)
        return masked(-distances / self.temperature, state["counts"])
'''

CONFIGS = {
    "algorithm": "# $title: what it does, in a line. Authors year.\n"
    "_target_: $package.$title\nsteps: 1\n",
    "classifier": "# $title: what it does, in a line. Authors year.\n"
    "_target_: $package.$title\ntemperature: 1.0\n",
}
MADE = {"algorithm": "$title", "classifier": "lambda module: Metric(module, $title())"}

TEST = '''\
"""$title keeps what every $group keeps to; add what the paper says of it."""

$imported

from metalearn.benchmarks.contract import contract


def test_it_keeps_the_contract():
    assert contract($made, outputs=$outputs) == []
'''

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
dependencies = ["$needed"]

[project.entry-points."metalearn.conf"]
$name = "$package.conf"
"""


def main(arguments: list[str], console: Console) -> None:
    """`metalearn new algorithm|classifier <name> [folder]`."""
    if not 2 <= len(arguments) <= 3 or arguments[0] not in GROUPS:
        near = nearest(arguments[0], GROUPS) if arguments else ""
        raise UsageError(f"write metalearn new algorithm|classifier <name> [folder]{near}")
    group, name = arguments[:2]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"{name} cannot name a method; use small letters, digits and _")
    if name in {path.stem for path in conf_files(group)}:
        raise UsageError(f"{group}={name} is there already; use another name")
    folder = Path(arguments[2] if len(arguments) > 2 else f"metalearn_{name}")
    if folder.exists():
        raise UsageError(f"{folder} is there already; name a new folder after {name}")
    for path, text in files(group, name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    chosen = f"algorithm={name}" if group == "algorithm" else f"algorithm=metric classifier={name}"
    teller(console)(
        f"{folder}: a {group} that works, to change\n"
        f"  pip install -e {folder}\n  pytest {folder}\n  metalearn train {chosen}\n"
        f"  metalearn score {name}"
    )


def files(group: str, name: str) -> dict[str, str]:
    """What the package holds, by path inside its folder."""
    package, title = f"metalearn_{name}", "".join(part.capitalize() for part in name.split("_"))
    values = {
        "title": title, "package": package, "name": name, "group": group,
        "distribution": package.replace("_", "-"), "needed": __distribution__,
        "outputs": str(group == "algorithm"),
    }  # fmt: skip
    imported = [f"from {package} import {title}"]
    if group == "classifier":
        imported.append("from metalearn.algorithms import Metric")
    values["imported"] = "\n".join(imported)
    values["made"] = Template(MADE[group]).substitute(values)
    texts = {
        "pyproject.toml": PROJECT,
        f"{package}/__init__.py": ALGORITHM if group == "algorithm" else CLASSIFIER,
        f"{package}/conf/__init__.py": "",
        f"{package}/conf/{group}/{name}.yaml": CONFIGS[group],
        f"tests/test_{name}.py": TEST,
    }
    return {path: Template(text).substitute(values) for path, text in texts.items()}
