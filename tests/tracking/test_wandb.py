import json
import math
import struct
import threading
import time

import pytest
from wandb.proto import wandb_internal_pb2 as records

from metalearn.tracking import JsonLines, RunInfo, Tracker, WandB, read_records
from tests.preloaded import Process

_HEADER, _BLOCK, _PREFIX = 7, 32768, 7


def wandb_records(path):
    """Yield the protobuf records of a `.wandb` file.

    It is a LevelDB log: blocks of 32 KiB, in them pieces of crc, length, kind and data.
    """
    data = path.read_bytes()
    place, parts = _HEADER, b""
    while place + _PREFIX <= len(data):
        room = _BLOCK - place % _BLOCK
        if room < _PREFIX:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + _PREFIX + length > len(data):
            return  # still being written
        parts += data[place + _PREFIX : place + _PREFIX + length]
        place += _PREFIX + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield records.Record.FromString(parts)  # type: ignore[attr-defined]
            parts = b""


def history(path):
    """One dict a `run.log` call."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json)
         for item in record.history.item}
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]  # fmt: skip


def recorded(folder):
    """The file of a finished run, whole: wandb's own process may still be writing its end."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if any(r.WhichOneof("record_type") == "exit" for r in wandb_records(path)):
            break
        time.sleep(0.1)
    return path


def test_offline_records_everything(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    sink = WandB("offline", finish_timeout=300, warn=pytest.fail)
    run = RunInfo("my run", tmp_path, {"inner": {"rate": 0.1}}, "c0ffee", seed=3, steps=2)
    identity = sink.start(run)["wandb_id"]
    assert len(identity) == 8
    sink.scalars(1, {"loss": 0.5, "tasks_per_second": 12.0, "peak_memory_bytes": 1e9})
    sink.episodes(1, "train", {"accuracy": [0.25, 1.0], "loss": [math.nan, 0.5]})
    sink.episodes(2, "train", {"accuracy": [0.75], "index": [9]})
    sink.episodes(2, "val", {"accuracy": [0.0, 0.5, 1.0], "loss": [1.0, math.nan, math.inf],
                             "index": [0, 1, 2]})  # fmt: skip
    sink.summary({"accuracy": 0.875})
    sink.close("finished")

    rows = [{k: v for k, v in row.items() if k[0] != "_"} for row in history(recorded(tmp_path))]
    assert rows[0] == {"step": 1, "loss": 0.5, "tasks_per_second": 12.0, "peak_memory_bytes": 1e9}
    assert rows[1]["episode"] == 0 and rows[1]["episodes/train/accuracy"] == 0.25
    assert math.isnan(float(rows[1]["episodes/train/loss"]))
    assert rows[2] == {"episode": 1, "episodes/train/accuracy": 1.0, "episodes/train/loss": 0.5}
    assert rows[3] == {"episode": 9, "episodes/train/accuracy": 0.75}
    evaluation = rows[4]
    assert evaluation["step"] == 2 and evaluation["val/accuracy"] == 0.5
    assert sum(evaluation["val/accuracy_histogram/values"]) == 3
    assert sum(evaluation["val/loss_histogram/values"]) == 1
    assert rows[5]["step"] == 2 and rows[5]["val/episodes/nrows"] == 3
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/val/*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["accuracy", "loss", "index"]
    assert [row[0] for row in content["data"]] == [0.0, 0.5, 1.0]

    (record,) = [r.run for r in wandb_records(recorded(tmp_path)) if r.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert (record.run_id, record.display_name) == (identity, "my run")
    assert config["inner"] == {"rate": 0.1}
    assert (config["commit"], config["seed"]) == ("c0ffee", 3)
    axes = {r.metric.name: r.metric.step_metric for r in wandb_records(recorded(tmp_path))
            if r.HasField("metric")}  # fmt: skip
    assert axes["loss"] == axes["val/accuracy"] == "step"
    assert axes["episodes/train/accuracy"] == "episode"
    summary = [item for r in wandb_records(recorded(tmp_path)) if r.HasField("summary")
               for item in r.summary.update if item.key == "accuracy"]  # fmt: skip
    assert json.loads(summary[-1].value_json) == 0.875


def test_a_table_is_recorded_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    tracker = Tracker([JsonLines(), WandB("offline", finish_timeout=300, warn=pytest.fail)])
    tracker.start(RunInfo("n", tmp_path, {}, None, seed=0, steps=0))
    rows = [["protonet", 0.5, True], ["maml", None, False]]
    tracker.table("comparison", ["method", "accuracy", "best"], rows)
    with pytest.raises(ValueError, match="every row of comparison needs 1 values"):
        tracker.table("comparison", ["method"], rows)
    tracker.close("finished")
    (row,) = history(recorded(tmp_path))
    assert row["comparison/nrows"] == 2
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["method", "accuracy", "best"],
        "data": rows,
    }
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert (record["kind"], record["rows"]) == ("table", rows)


def test_without_a_key_online_goes_offline_in_one_line_and_a_resumed_run_keeps_its_id(
    tmp_path, monkeypatch
):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    warnings = []
    sink = WandB("online", finish_timeout=300, warn=warnings.append)
    run = RunInfo("n", tmp_path, {}, None, seed=0, steps=9, resume_step=4, wandb_id="abcd1234")
    assert sink.start(run) == {"wandb_id": "abcd1234"}
    sink.scalars(5, {"loss": 0.5})
    sink.close("finished")
    assert warnings == [
        "W&B: recording offline (no API key for wandb.invalid: set WANDB_API_KEY or run `wandb "
        "login`). The run goes on and metrics.jsonl has every record; `wandb sync "
        f"{tmp_path}/wandb/offline-run-*` uploads it later."
    ]
    assert recorded(tmp_path).name == "run-abcd1234.wandb"
    assert [row["loss"] for row in history(recorded(tmp_path))] == [0.5]


def test_a_sweep_agent_names_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "sweep001")
    sink = WandB("offline", finish_timeout=300, warn=pytest.fail)
    assert sink.start(RunInfo("n", tmp_path, {}, None, 0, 9)) == {"wandb_id": "sweep001"}
    sink.close("interrupted")
    assert recorded(tmp_path).name == "run-sweep001.wandb"


def test_records_that_wandb_refuses_do_not_raise(tmp_path):
    warnings = []
    sink = WandB("offline", finish_timeout=300, warn=warnings.append)
    sink.start(RunInfo("n", tmp_path, {}, None, 0, 9))
    sink.scalars("one", {3: object()})  # type: ignore[arg-type]
    sink.scalars(2, {"loss": 0.5})
    sink.close("finished")
    assert len(warnings) == 1 and "a record failed" in warnings[0]
    assert [row["loss"] for row in history(recorded(tmp_path)) if "loss" in row] == [0.5]


def test_disabled_does_nothing_and_does_not_import_wandb(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom metalearn.tracking import *\n"
        "tracker = Tracker([WandB('disabled')])\n"
        "assert tracker.start(RunInfo('n', Path(sys.argv[1]), {}, None, 0, 9)) == {}\n"
        "tracker.scalars(1, {'loss': 1.0})\ntracker.close()\nassert 'wandb' not in sys.modules\n"
    )
    with Process(script, str(tmp_path)) as process:
        printed = process.communicate()
    assert (process.returncode, *printed) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_call_does_not_wait_for_wandb(tmp_path, monkeypatch):
    """While W&B has not even started, every record is taken, and none is lost."""
    opened, opening = WandB._open, threading.Event()

    def held(sink, *arguments):
        assert opening.wait(300)
        return opened(sink, *arguments)

    monkeypatch.setattr(WandB, "_open", held)
    tracker = Tracker([JsonLines(), WandB("offline", finish_timeout=300, warn=pytest.fail)])
    tracker.start(RunInfo("n", tmp_path, {}, None, 0, 200))
    for step in range(1, 201):
        tracker.scalars(step, {"loss": 0.5})
        tracker.episodes(step, "train", {"accuracy": [0.5] * 16, "loss": [0.5] * 16})
    opening.set()  # a call that waited for W&B would not have let us come here
    tracker.close()
    assert len(history(recorded(tmp_path))) == 200 * 17


def test_a_call_costs_little(tmp_path):
    """In time of this thread's processor, which other programs do not lengthen."""
    sink = WandB("offline", finish_timeout=300, warn=pytest.fail)
    sink.start(RunInfo("n", tmp_path, {}, None, 0, 200))
    begin = time.thread_time()
    for step in range(1, 201):
        sink.scalars(step, {"loss": 0.5})
        sink.episodes(step, "train", {"accuracy": [0.5] * 16, "loss": [0.5] * 16})
    assert (time.thread_time() - begin) / 200 < 1e-3
    sink.close("finished")


def test_rows_of_training_episodes_can_be_left_out(tmp_path):
    sink = WandB("offline", train_episodes=False, finish_timeout=300, warn=pytest.fail)
    sink.start(RunInfo("n", tmp_path, {}, None, 0, 9))
    sink.episodes(1, "train", {"accuracy": [0.5] * 16})
    sink.scalars(1, {"loss": 0.5})
    sink.close("finished")
    assert [row["loss"] for row in history(recorded(tmp_path))] == [0.5]


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="online, offline or disabled, not 'onlien'"):
        WandB("onlien")  # type: ignore[arg-type]
