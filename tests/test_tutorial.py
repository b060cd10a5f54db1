"""The tutorial's command line, with the module and the data set of its first block."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def test_the_command_line_of_the_tutorial(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "experiments/tutorial/README.md").read_text(encoding="utf-8"))
    first = next(text for language, text in blocks if language == "python")
    own = "".join(example.source for example in doctest.DocTestParser().get_examples(first))
    (tmp_path / "gestures.py").write_text(own)
    for named in (text for language, text in blocks if language == "yaml"):
        path = tmp_path / named.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(named)
    (script,) = (text for language, text in blocks if language == "sh")
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / "runs/gestures/result.json").read_text())
    assert (result["dataset"], result["episodes"], result["steps"]) == ("gestures", 100, 60)
    assert result["accuracy"] - result["accuracy_half_width"] > result["untrained_accuracy"]
    assert len(result["manifest_hash"]) == 64
    assert "200, 5-way, 5-shot, 15 queries a class" in done.stdout
