"""The command `metalearn`. A wheel installs this file beside the package, so that it runs even
where another one wrote over it.

Two other projects install an import of the name `metalearn`: pip lets the last one win, file by
file, and removes what they share with either. What is left of ours would fail for missing names.
"""

import os
import signal
import sys
from importlib import metadata, util
from pathlib import Path

DISTRIBUTION = "metalearn-torch"
MARK = f'__distribution__ = "{DISTRIBUTION}"'
"""A line of `metalearn/__init__.py`, by which that file is ours."""


def main() -> None:
    """Check that the package is ours, then `metalearn.cli`. Else one line and exit code 2."""
    if line := problem():
        _stop(line)
    # Ctrl-C while modules are imported ends in silence, not in a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        from metalearn.cli import main as command
    except ImportError as error:
        if (error.name or "").split(".")[0] != "metalearn" or not others():
            raise
        _stop(overwritten())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


def problem() -> str | None:
    """What is wrong with the `metalearn` that Python finds, in one line; it is not imported."""
    found = util.find_spec("metalearn")
    if found is None:
        return f"the package is gone; {_again()}"
    try:
        if MARK in Path(found.origin or "").read_text(encoding="utf-8").splitlines():
            return None
    except (OSError, UnicodeDecodeError):  # no __init__.py, or not one of ours
        pass
    places = [Path(place).resolve() for place in found.submodule_search_locations or ()]
    if Path(__file__).resolve().with_name("metalearn") in places:
        return overwritten()
    other = places[0] if places else found.origin
    return f"Python finds another metalearn first, at {other}; take it off PYTHONPATH"


def overwritten() -> str:
    """The line for a `metalearn` with files of another package, or without some of ours."""
    if found := others():
        names = " ".join(found)
        theirs = ", ".join(f"{name} {metadata.version(name)}" for name in found)
        return (
            f"files of {DISTRIBUTION} are overwritten or removed by {theirs}, of the same import "
            f"name; pip uninstall {names}, then {_again()}"
        )
    return f"metalearn/__init__.py is not that of {DISTRIBUTION}; {_again()}"


def others() -> list[str]:
    """Other distributions here that install an import of this name."""
    found = metadata.packages_distributions().get("metalearn", [])
    return sorted({name for name in found if name.lower().replace("_", "-") != DISTRIBUTION})


def _again() -> str:
    return f"pip install --force-reinstall --no-deps {DISTRIBUTION}"


def _stop(line: str) -> None:
    print(f"metalearn: {line}", file=sys.stderr)
    sys.exit(2)
