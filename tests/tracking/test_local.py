import json
import math
import os
import signal

import pytest

from metalearn.tracking import JsonLines, RunInfo, read_records
from tests.preloaded import Process


def info(folder, resume_step=None):
    return RunInfo("name", folder, {}, None, seed=0, steps=9, resume_step=resume_step)


def written(folder, steps):
    sink = JsonLines()
    sink.start(info(folder))
    for step in range(1, steps + 1):
        sink.scalars(step, {"loss": 1.0 / step})
        sink.episodes(step, "train", {"accuracy": [0.5, 1.0], "index": [2 * step, 2 * step + 1]})
    sink.close("finished")
    return folder / "metrics.jsonl"


def test_records_come_back_as_they_went(tmp_path):
    sink = JsonLines()
    assert sink.start(info(tmp_path)) == {}
    sink.scalars(1, {"loss": 0.125})
    sink.episodes(1, "val", {"accuracy": [0.5], "index": [3]})
    sink.summary({"accuracy": 0.5, "accuracy_by_step": [[0.2, 0.1]], "name": "inf"[::-1]})
    sink.close("finished")
    records = list(read_records(tmp_path / "metrics.jsonl"))
    assert all(record.pop("time") > 1.7e9 for record in records)
    assert records == [
        {"kind": "scalars", "step": 1, "loss": 0.125},
        {"kind": "episodes", "step": 1, "split": "val", "accuracy": [0.5], "index": [3]},
        {"kind": "summary", "step": 1, "accuracy": 0.5, "accuracy_by_step": [[0.2, 0.1]],
         "name": "fni"},
    ]  # fmt: skip


def test_values_that_are_not_finite_survive_in_valid_json(tmp_path):
    sink = JsonLines()
    sink.start(info(tmp_path))
    sink.scalars(1, {"loss": math.nan, "rate": math.inf})
    sink.episodes(1, "train", {"loss": [-math.inf, math.nan, 2.0]})
    sink.close("failed")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert (lines[0]["loss"], lines[0]["rate"]) == ("nan", "inf")
    scalars, episodes = read_records(path)
    assert math.isnan(scalars["loss"]) and scalars["rate"] == math.inf
    assert episodes["loss"][0] == -math.inf and math.isnan(episodes["loss"][1])
    assert episodes["loss"][2] == 2.0


def test_every_record_is_on_disk_at_once(tmp_path):
    sink = JsonLines()
    sink.start(info(tmp_path))
    sink.scalars(1, {"loss": 1.0})
    assert [record["loss"] for record in read_records(tmp_path / "metrics.jsonl")] == [1.0]
    sink.close("finished")


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    path = written(tmp_path, steps=5)
    before = path.read_text().splitlines(keepends=True)
    path.write_text("".join(before) + '{"kind": "scalars", "step": 3, "lo')
    sink = JsonLines()
    sink.start(info(tmp_path, resume_step=3))
    assert path.read_text() == "".join(before[:6])
    sink.scalars(4, {"loss": 7.0})
    sink.close("finished")
    scalars = [r["loss"] for r in read_records(path) if r["kind"] == "scalars"]
    assert scalars == [1.0, 1 / 2, 1 / 3, 7.0]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_run_from_its_beginning_starts_an_empty_file(tmp_path):
    path = written(tmp_path, steps=2)
    sink = JsonLines()
    sink.start(info(tmp_path))
    sink.close("finished")
    assert path.read_text() == ""


def test_reading_leaves_out_a_torn_last_line_but_no_other(tmp_path):
    path = written(tmp_path, steps=2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert len(list(read_records(path))) == 3
    path.write_bytes(b'{"step": \xff\n' + whole)
    with pytest.raises(ValueError, match="line 1 is damaged"):
        list(read_records(path))


def test_a_killed_writer_loses_no_finished_record(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom metalearn.tracking import *\n"
        "sink = JsonLines()\nsink.start(RunInfo('n', Path(sys.argv[1]), {}, None, 0, 9))\n"
        "step = 0\n"
        "while True:\n"
        "    step += 1\n    sink.episodes(step, 'train', {'loss': [0.1] * 3000})\n"
        "    print(step, flush=True)\n"
    )
    with Process(script, str(tmp_path)) as process:
        confirmed = max(int(process.stdout.readline()) for _ in range(40))
        process.send_signal(signal.SIGKILL)
    steps = [record["step"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= confirmed
    sink = JsonLines()
    sink.start(info(tmp_path, resume_step=confirmed))
    sink.close("finished")
    kept = [record["step"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert kept == list(range(1, confirmed + 1))


def test_records_outside_a_run_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="between start"):
        JsonLines().scalars(1, {"loss": 1.0})
