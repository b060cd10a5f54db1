"""What one process composes many times is what Hydra gives each time."""

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from metalearn.commands.building import composer
from metalearn.commands.building.config import compose, on_conf
from metalearn.commands.building.searchpath import conf_folder
from metalearn.errors import UsageError

LISTS = (
    [],
    ["inner.rate=0.2", "episodes.shots=[1,5]", "name='a, b=c'", "run_dir=null"],
    ["algorithm=anil", "inner.rate=0.2", "backbone=resnet12", "backbone.dropout=0.1"],
    ["backbone=timm", "+backbone.options={depth: 2, more: [1, 2]}", "backbone.pretrained=false"],
    ["name=a", "++name=b"],
    ["++name=b", "name=a"],
    ["+backbone.options={depth: 2}", "backbone.options.depth=3", "backbone=timm"],
    ["experiment=omniglot_maml_20w5s", "episodes.ways=5", "sampling.queries=dirichlet"],
    ["~outer/schedule", "outer.rate=0.5", "images.size=[28,28]"],
    ["backbone=timm", "backbone.options={depth: 2}", "backbone.options={other: 3}"],
    ["inner.rate=0.2", "seed=first"],
    ["training.steps.more=2", "algorithm=maml"],
    ["algorithm=nothing", "seed=first"],
    ["training=3"],
    ["name='a"],
)


def by_hydra(overrides: list[str]) -> object:
    """The whole configuration, or the mistake."""
    return of(lambda: hydra.compose("train", overrides))


def of(compose: Callable[[], DictConfig]) -> object:
    with on_conf():
        try:
            return OmegaConf.to_container(compose())
        except Exception as error:
            first = str(error).partition("\n")[0]
            return type(error), first, type(error.__cause__), str(error.__cause__)


@pytest.mark.parametrize("overrides", LISTS, ids=" ".join)
def test_values_set_later_are_those_of_a_whole_composition(overrides: list[str]) -> None:
    expected = by_hydra(overrides)
    for _ in "of it all", "from what is known":
        assert of(lambda: composer.composed("train", overrides)) == expected


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "algorithm").mkdir()
    file = tmp_path / "algorithm" / "own.yaml"
    text = (conf_folder() / "algorithm" / "maml.yaml").read_text()
    asked = ["algorithm=own", f"hydra.searchpath=[file://{tmp_path}]"]
    with pytest.raises(UsageError, match="own"):
        compose(asked)
    file.write_text(text)
    assert compose(asked)["algorithm"]["steps"] == 1
    file.write_text(text.replace("steps: 1", "steps: 17"))
    assert compose(asked)["algorithm"]["steps"] == 17


def test_what_was_composed_is_a_copy() -> None:
    first = compose(["algorithm=maml", "inner.rate=0.3"])
    first["algorithm"]["steps"] = -1
    assert compose(["algorithm=maml", "inner.rate=0.3"])["algorithm"]["steps"] != -1
    assert compose(["algorithm=maml"])["inner"]["rate"] != 0.3
