import io
import time

from rich.console import Console

from metalearn.tracking import Progress, RunInfo


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self):
        return self.now


def progress(tmp_path, terminal, clock, steps=100):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    sink = Progress(console, clock=clock)
    sink.start(RunInfo("maml", tmp_path, {}, None, seed=0, steps=steps))
    return sink, out


def test_plain_lines_come_every_ten_seconds_and_at_the_end(tmp_path):
    clock = Clock()
    sink, out = progress(tmp_path, False, clock)
    for step in range(1, 101):
        clock.now += 0.5
        sink.scalars(step, {"loss": 1 / step, "accuracy": step / 100, "tasks_per_second": 8.0})
    sink.close("finished")
    lines = out.getvalue().splitlines()
    assert lines[0] == "20/100  loss 0.05  accuracy 20.0%  8.0 tasks/s  0:40 left"
    assert [line.split("/")[0] for line in lines] == ["20", "40", "60", "80", "100"]
    assert lines[-1] == "100/100  loss 0.01  accuracy 100.0%  8.0 tasks/s  0:00 left"
    assert "\x1b" not in out.getvalue()


def test_time_left_leaves_out_the_first_step_and_counts_hours(tmp_path):
    clock = Clock()
    sink, out = progress(tmp_path, False, clock, steps=3602)
    clock.now += 500.0  # compilation
    sink.scalars(1, {"loss": 1.0})
    clock.now += 10.0
    sink.scalars(2, {"loss": float("nan")})
    assert out.getvalue().splitlines() == [
        "1/3602  loss 1", "2/3602  loss nan  10:00:00 left"
    ]  # fmt: skip


def test_a_pre_training_shows_images_and_held_out_accuracy(tmp_path):
    sink, out = progress(tmp_path, False, Clock(), steps=8)
    sink.scalars(4, {"loss": 2.0, "images_per_second": 31.25, "held_out_accuracy": 0.5})
    sink.scalars(8, {"loss": 1.0, "images_per_second": 31.25})
    assert out.getvalue().splitlines() == [
        "val at step 4: accuracy 50.0% on held-out images of the base classes",
        "8/8  loss 1  31.2 images/s  0:00 left",
    ]


def test_an_evaluation_gets_a_line_that_stays(tmp_path):
    sink, out = progress(tmp_path, False, Clock())
    sink.episodes(5, "train", {"accuracy": [0.0, 1.0]})
    sink.episodes(5, "val", {"accuracy": [0.75, 1.0], "loss": [0.5, 1.0], "index": [0, 1]})
    assert out.getvalue() == "val at step 5: accuracy 87.5% loss 0.75 over 2 episodes\n"


def test_a_terminal_shows_one_live_line_below_printed_ones(tmp_path):
    clock = Clock()
    sink, out = progress(tmp_path, True, clock)
    sink.scalars(50, {"loss": 0.25, "accuracy": 0.5})
    sink.console.print("a line of the program")
    sink.close("finished")
    text = out.getvalue()
    assert "\x1b[2K" in text and "50/100  loss 0.25  accuracy 50.0%" in text
    assert "a line of the program\n" in text


def test_a_step_costs_little(tmp_path):
    sink, _ = progress(tmp_path, True, time.monotonic, steps=10**6)
    begin = time.thread_time()  # not lengthened by other programs
    for step in range(1, 2001):
        sink.scalars(step, {"loss": 0.25, "accuracy": 0.5, "tasks_per_second": 8.0})
    spent = time.thread_time() - begin
    sink.close("finished")
    assert spent / 2000 < 1e-3


def test_where_a_clock_ends_the_run_its_time_left_is_shown_and_no_number_of_steps(tmp_path):
    clock, out = Clock(), io.StringIO()
    sink = Progress(Console(file=out, width=120), clock=clock)
    sink.start(RunInfo("maml", tmp_path, {}, None, seed=0, steps=10**6, seconds=90.0))
    clock.now += 30.0
    sink.scalars(4, {"loss": 0.5})
    clock.now += 70.0
    sink.scalars(9, {"loss": 0.25})
    assert out.getvalue().splitlines() == [
        "step 4  loss 0.5  1:00 left", "step 9  loss 0.25  0:00 left"
    ]  # fmt: skip


def test_the_time_left_of_a_budget_is_that_of_its_own_clock(tmp_path):
    clock, budget, out = Clock(), Clock(), io.StringIO()
    sink = Progress(Console(file=out, width=120), clock=clock, budget=budget)
    sink.start(RunInfo("maml", tmp_path, {}, None, seed=0, steps=10**6, seconds=90.0))
    clock.now += 300.0
    budget.now += 30.0
    sink.scalars(4, {"loss": 0.5})
    assert out.getvalue() == "step 4  loss 0.5  1:00 left\n"
