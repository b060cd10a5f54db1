import pytest
import torch

from metalearn.tracking import RunInfo, Tracker


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self, kept=None, fail=False):
        self.calls, self.kept, self.fail = [], kept or {}, fail

    def start(self, run):
        self.calls.append(("start", run.name))
        return self.kept

    def scalars(self, step, values):
        self.calls.append(("scalars", step, values))

    def episodes(self, step, split, values):
        self.calls.append(("episodes", step, split, values))

    def summary(self, values):
        self.calls.append(("summary", values))

    def table(self, name, columns, rows):
        self.calls.append(("table", name, columns, rows))

    def close(self, status):
        self.calls.append(("close", status))
        if self.fail:
            raise OSError("disk full")


@pytest.fixture
def run(tmp_path):
    return RunInfo("name", tmp_path, {"a": 1}, None, seed=0, steps=3)


def test_every_sink_gets_every_record_as_plain_numbers(run):
    first, second = Recorder({"wandb_id": "x"}), Recorder()
    tracker = Tracker([first, second])
    assert tracker.start(run) == {"wandb_id": "x"}
    tracker.scalars(1, {"loss": torch.tensor(0.5)})  # type: ignore[dict-item]
    values = {"accuracy": torch.tensor([0.25, 1.0]), "index": torch.tensor([7, 8])}
    tracker.episodes(1, "val", values)  # type: ignore[arg-type]
    tracker.summary({"accuracy": 0.5})
    tracker.close()
    expected = [
        ("start", "name"),
        ("scalars", 1, {"loss": 0.5}),
        ("episodes", 1, "val", {"accuracy": [0.25, 1.0], "index": [7, 8]}),
        ("summary", {"accuracy": 0.5}),
        ("close", "finished"),
    ]
    assert first.calls == second.calls == expected
    assert all(isinstance(number, int) for number in first.calls[2][3]["index"])


def test_episode_values_must_have_one_length(run):
    tracker = Tracker([Recorder()])
    tracker.start(run)
    with pytest.raises(ValueError, match=r"one length.*'accuracy': 2, 'loss': 1"):
        tracker.episodes(1, "train", {"accuracy": [0.1, 0.2], "loss": [1.0]})


def test_closing_reaches_every_sink_though_one_fails(run):
    broken, whole = Recorder(fail=True), Recorder()
    tracker = Tracker([broken, whole])
    with pytest.raises(OSError, match="disk full"):
        tracker.close()
    assert whole.calls == [("close", "finished")]
    tracker.close()
    assert whole.calls == [("close", "finished")]


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "finished"), (KeyboardInterrupt, "interrupted"), (SystemExit, "interrupted"),
     (ArithmeticError, "failed")],
)  # fmt: skip
def test_the_way_out_decides_the_status(error, status):
    sink = Recorder()
    try:
        with Tracker([sink]):
            if error is not None:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert sink.calls == [("close", status)]
