"""Run `metalearn` in this process, for speed, and see what a user would."""

import contextlib
import io
import os
import sys
from typing import NamedTuple
from unittest import mock

from hydra.core.global_hydra import GlobalHydra

from metalearn import cli
from metalearn.commands.building.hydra_runs import Sweep

FAST = (
    "debug=fast",
    "dataset.classes=60",
    "backbone.filters=4",
    "tracker=disabled",
    "tracker.plots=false",
    "evaluation.untrained=false",
)

META_TRAINED = (
    'meta.common=["outer/schedule=constant","training.steps=1000000","training.meta_batch=2",'
    '"training.validate_every=50","evaluation.validation_episodes=2","evaluation.episodes=2",'
    '"evaluation.untrained=false","batching=loop"]'
)
"""conf/compare.yaml's, with fewer episodes for what a method chooses and tells by itself."""


class Outcome(NamedTuple):
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line of a user's mistake."""
        assert self.code == 2, self
        assert self.err.startswith("metalearn: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("metalearn: ").rstrip()


def metalearn(*arguments: str) -> Outcome:
    """`metalearn <arguments>`; a bug's exception comes through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["metalearn", *arguments]),
        mock.patch.dict(os.environ),
        mock.patch.object(Sweep, "folder", None),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        finally:
            GlobalHydra.instance().clear()
    return Outcome(code, out.getvalue(), err.getvalue())
