import json
import math
import struct

import pytest
from rich.console import Console

from metalearn.evaluation.plots import (
    plot_accuracy_by_step,
    plot_learning_curve,
    plot_pretraining,
    smooth,
)
from metalearn.evaluation.report import (
    pretraining_table,
    result_table,
    write_episode_file,
    write_json,
)
from metalearn.evaluation.statistics import Interval

RESULT = {
    "accuracy": 0.93124, "accuracy_half_width": 0.0041, "untrained_accuracy": 0.45,
    "untrained_accuracy_half_width": 0.012, "episodes": 600, "ways": 5, "shots": 1, "queries": 15,
    "norm_policy": "transductive", "manifest_hash": "ab" * 32, "seed": 0,
    "config_hash": "cd" * 32, "commit": None, "seconds": 412.34, "tasks_per_second": 55.06,
    "peak_memory_bytes": 512 * 2**20, "weights_sha256": "12" * 32, "algorithm": "maml",
    "gradient": "unroll", "backbone": "conv4", "dataset": "glyphs", "split": "test",
    "accuracy_by_step": [[0.2, 0.01], [0.93124, 0.0041]],
}  # fmt: skip


def rows(result, table=result_table):
    """Cells of the table by name; a cell of several lines gives a list of them."""
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(table(result))
    found, name = {}, ""
    for line in capture.get().splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            name = cells[0] or name
            found.setdefault(name, []).append(cells[1])
    return {key: value[0] if len(value) == 1 else value for key, value in found.items()}


def test_the_table_of_a_classification():
    assert rows(RESULT) == {
        "accuracy": "93.12% ± 0.41%", "untrained": "45.00% ± 1.20%",
        "by inner step": ["0: 20.00% ± 1.00%", "1: 93.12% ± 0.41%"],
        "episodes": "600, 5-way, 1-shot, 15 queries a class", "data set": "glyphs",
        "split": "test", "algorithm": "maml", "gradient": "unroll", "backbone": "conv4",
        "norm policy": "transductive", "time": "412.3 s, 55.1 tasks/s", "peak memory": "512 MiB",
        "seed": "0", "manifest": "ab" * 6, "config": "cd" * 6, "weights sha256": "12" * 6,
    }  # fmt: skip


def test_a_transductive_result_says_so():
    told = rows({**RESULT, "transductive": True})
    assert told.pop("transductive") == "yes: a task's queries are seen together, without labels"
    assert told == rows({**RESULT, "transductive": False}) == rows(RESULT)


def test_the_table_of_a_regression():
    result = {
        "loss": 0.31415, "loss_half_width": 0.0271, "episodes": 600, "shots": 10,
        "queries": 10, "split": "test", "loss_by_step": [[3.1, 0.2], [0.31415, "nan"]],
    }  # fmt: skip
    assert rows(result) == {
        "mean squared error": "0.3141 ± 0.027",
        "by inner step": ["0: 3.1 ± 0.2", "1: 0.3141"],
        "episodes": "600, 10-shot, 10 queries",
        "split": "test",
    }


def test_the_table_of_a_detector_that_an_earlier_version_trained():
    result = {
        "base_ap50": 0.25, "pictures": 13, "steps": 30, "selected_step": 20, "epochs": 0.5,
        "dataset": "glyph_scenes", "classes": 40, "backbone": "conv4", "seconds": 2.0, "seed": 3,
        "pictures_per_second": 12.5, "weights": "base/b.safetensors", "command": "metalearn train",
    }  # fmt: skip
    assert rows(result, pretraining_table) == {
        "AP50 of base classes": "25.00% on 13 pictures of held-out images",
        "selected": "step 20 of 30", "data set": "glyph_scenes", "base classes": "40",
        "backbone": "conv4", "epochs": "0.5", "time": "2.0 s, 12.5 pictures/s, fp32", "seed": "3",
        "weights": "base/b.safetensors", "use them": "metalearn train",
    }  # fmt: skip


def test_json_is_valid_and_whole(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": (1, math.nan)})
    write_json(path, {"accuracy": 0.5, "by_step": [[0.25, math.inf]]})
    assert json.loads(path.read_text()) == {"accuracy": 0.5, "by_step": [[0.25, "inf"]]}
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text())["accuracy"] == 0.5
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_the_episode_file(tmp_path):
    path = tmp_path / "episodes.csv"
    write_episode_file(path, [
        {"index": 0, "accuracy": 0.5, "loss": 1.25, "accuracy_by_step": [0.2, 0.5]},
        {"index": 1, "accuracy": 1.0, "loss": 0.1, "accuracy_by_step": [0.3, 1.0]},
    ])  # fmt: skip
    assert path.read_text().splitlines() == [
        "index,accuracy,loss,accuracy_after_0,accuracy_after_1",
        "0,0.5,1.25,0.2,0.5",
        "1,1.0,0.1,0.3,1.0",
    ]
    with pytest.raises(ValueError, match="row 1 has columns"):
        write_episode_file(path, [{"index": 0, "loss": 1.0}, {"index": 1}])
    with pytest.raises(ValueError, match="no episodes"):
        write_episode_file(path, [])


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_learning_curve(tmp_path):
    records = [{"kind": "scalars", "step": s, "loss": 1 / s, "accuracy": 1 - 1 / s}
               for s in range(1, 101)]  # fmt: skip
    records[4]["loss"] = math.nan
    records += [{"kind": "episodes", "split": "val", "step": s, "accuracy": [0.4, s / 100],
                 "loss": [1.0, 2.0]} for s in (50, 100)]  # fmt: skip
    plot_learning_curve(records, tmp_path / "both.png")
    plot_learning_curve(
        [{k: v for k, v in r.items() if k != "accuracy"} for r in records], tmp_path / "loss.png"
    )
    assert png_size(tmp_path / "both.png") == (1080, 1050)
    assert png_size(tmp_path / "loss.png") == (1080, 675)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_learning_curve([{"kind": "summary", "step": 3}], tmp_path / "none.png")


def test_a_pre_training(tmp_path):
    records = [{"kind": "scalars", "step": s, "loss": 1 / s, "accuracy": 1 - 1 / s}
               for s in range(1, 101)]  # fmt: skip
    records[49] |= {"held_out_accuracy": 0.7, "held_out_loss": 0.5}
    plot_pretraining(records, tmp_path / "plain.png")
    assert png_size(tmp_path / "plain.png") == (1080, 1050)
    records += [{"kind": "episodes", "split": f"val 5-way {k}-shot", "step": 50,
                 "accuracy": [0.4, 0.5]} for k in (1, 5)]  # fmt: skip
    plot_pretraining(records, tmp_path / "few.png")
    assert png_size(tmp_path / "few.png") == (1080, 1425)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_pretraining(records[100:], tmp_path / "none.png")


def test_accuracy_by_step(tmp_path):
    for number, count in enumerate([1, 6]):
        path = tmp_path / f"{number}.png"
        plot_accuracy_by_step([Interval(0.9, 0.01, 600)] * count, path, chance=0.2)
        assert png_size(path) == (840, 570)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_accuracy_by_step([], tmp_path / "none.png")


def test_smoothing_is_a_centred_mean_that_leaves_out_what_is_not_finite():
    assert smooth([1.0, 2.0, 6.0, 4.0], 3).tolist() == [1.5, 3.0, 4.0, 5.0]
    assert smooth([1.0, math.nan, 3.0], 3).tolist() == [1.0, 2.0, 3.0]
    assert math.isnan(smooth([math.inf], 1)[0])
