"""What a sweep costs beside its runs, and what random kills leave: nothing lost, nothing twice.

    python -m scripts.sweep_kills <folder> [runs=200] [workers=2] [kills=0] [seed=0] [search=0]

Plans `runs` tiny runs and starts workers; `kills` times, when a random number of runs is done, one
that is chosen at random is killed by SIGKILL a random time later, and another started. Then every
attempt of every run is counted. search=1: they are the trials of a search, with pruning.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from metalearn.sweeps.claims import DONE, PRUNED, Claims
from metalearn.sweeps.plan import read_plan

TINY = [
    "dataset=sinusoid", "backbone=mlp", "backbone.hidden=[8]", "batching=loop", "tracker=disabled",
    "training.steps=4", "training.meta_batch=2", "training.validate_every=2",
    "training.checkpoint_every=1", "evaluation.episodes=5", "evaluation.validation_episodes=4",
    "evaluation.untrained=false",
]  # fmt: skip
SEARCH = {
    "search": {
        "trials": 30,
        "pruner": {"kind": "asha", "reduction_factor": 2},
        "space": {
            "algorithm": ["maml", "anil"],
            "inner.rate": "tag(log, interval(0.001, 0.5))",
            "algorithm.steps": {"values": "range(1, 4)", "when": {"algorithm": "maml"}},
        },
    }
}
ENDED = (f".{DONE}", f".{PRUNED}")
METALEARN = [sys.executable, "-m", "metalearn.cli", "sweep"]


def start(study: Path) -> subprocess.Popen[bytes]:
    """A worker, whose output goes to a file of the folder."""
    with (study / "workers.log").open("ab") as log:
        return subprocess.Popen([*METALEARN, "work", str(study)], stdout=log, stderr=log)


def main(folder: str, *options: str) -> None:
    """Run it, and print the counts."""
    numbers = {"runs": 200, "workers": 2, "kills": 0, "seed": 0, "search": 0}
    numbers |= {n: int(v) for n, _, v in (option.partition("=") for option in options)}
    study, rng = Path(folder), random.Random(numbers["seed"])
    study.mkdir(parents=True)
    plan = study / "planned.yaml"
    what = {"seeds": list(range(numbers["runs"]))}
    plan.write_text(json.dumps({"overrides": TINY} | (SEARCH if numbers["search"] else what)))
    subprocess.run([*METALEARN, "plan", str(plan), str(study)], check=True)
    began = time.monotonic()
    workers = [start(study) for _ in range(numbers["workers"])]
    moments = sorted(rng.sample(range(numbers["runs"]), numbers["kills"]))
    hit = 0
    for moment in moments:  # spread over the plan, however fast the machine is
        while len([p for p in (study / "claims").glob("*.*.*") if p.suffix in ENDED]) < moment:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))
        place = rng.randrange(len(workers))
        hit += workers[place].poll() is None
        workers[place].kill()
        workers[place].wait()
        workers[place] = start(study)
    codes = [worker.wait() for worker in workers]
    print(f"{time.monotonic() - began:.0f} s; {hit} kills; exit codes {codes}")
    tell(study)
    if numbers["search"]:
        subprocess.run([*METALEARN, "status", str(study)], check=True)


def tell(study: Path) -> None:
    """Counts of what became of every run, and the time beside the runs' own."""
    claims = Claims(study)
    found = claims.read()
    ends: Counter[str] = Counter()
    spent: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    times_done = Counter[int]()
    keys = [run.key for run in read_plan(study)] or sorted(found)
    for key in keys:
        attempts = found.get(key, [])
        ends.update("+".join(sorted(a.ends)) or "left by a kill" for a in attempts)
        times_done[sum(bool({DONE, PRUNED} & a.ends) for a in attempts)] += 1
        for attempt in attempts:
            for end in {DONE, PRUNED} & attempt.ends:
                path = claims.folder / f"{key}.{attempt.number}"
                seconds = claims.record(key, attempt)["seconds"]
                done = path.with_name(f"{path.name}.{end}").stat().st_mtime
                spent[attempt.worker].append((path.lstat().st_mtime, done, seconds))
    results = len(list((study / "runs").glob("*/result.json")))
    print(f"attempts: {dict(ends)}")
    print(f"runs by how often they were done: {dict(times_done)}; {results} results")
    beside = count = own = 0.0
    for runs in spent.values():
        if len(runs) > 1:
            beside += max(r[1] for r in runs) - min(r[0] for r in runs) - sum(r[2] for r in runs)
            own, count = own + sum(r[2] for r in runs), count + len(runs)
    if count:
        print(f"a run takes {own / count:.3f} s, and the sweep {beside / count:.3f} s beside it")


if __name__ == "__main__":
    main(*sys.argv[1:])
