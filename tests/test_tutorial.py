"""The tutorial's command line, with the module and the data set of its first block."""

import doctest
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.command import metalearn

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def test_the_command_line_of_the_tutorial(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall((ROOT / "experiments/tutorial/README.md").read_text(encoding="utf-8"))
    first = next(text for language, text in blocks if language == "python")
    own = "".join(example.source for example in doctest.DocTestParser().get_examples(first))
    Path("gestures.py").write_text(own)
    for named in (text for language, text in blocks if language == "yaml"):
        path = Path(named.splitlines()[0].removeprefix("# "))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(named)
    (script,) = (text for language, text in blocks if language == "sh")
    told = ""
    for line in script.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line.replace("$PWD", os.getcwd()))
        if program == "export":
            assert words == [f"PYTHONPATH={workplace}:$PYTHONPATH"]
            monkeypatch.syspath_prepend(workplace)
            continue
        outcome = metalearn(*words)
        assert program == "metalearn" and outcome.code == 0, outcome.err
        told += outcome.out
    result = json.loads(Path("runs/gestures/result.json").read_text())
    assert (result["dataset"], result["episodes"], result["steps"]) == ("gestures", 100, 60)
    assert result["accuracy"] - result["accuracy_half_width"] > result["untrained_accuracy"]
    assert len(result["manifest_hash"]) == 64
    assert "200, 5-way, 5-shot, 15 queries a class" in told
