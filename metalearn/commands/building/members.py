"""The members of `backbone=ensemble`: each built and loaded as a backbone of its own."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from metalearn.backbones import Ensemble
from metalearn.backbones.weights import Report
from metalearn.commands.building.admission import bare
from metalearn.commands.building.arguments import target
from metalearn.errors import UsageError


class Member(NamedTuple):
    """A network from images to features, how many these are, and what became of its weights."""

    module: nn.Module
    width: int
    report: Report | None


def is_ensemble(node: Mapping[str, Any]) -> bool:
    """Whether the backbone `node` has members."""
    return "members" in node and target(node["_target_"]) is Ensemble


def members(node: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of the members and their nodes, without heads, by the norm policy of all. Raises
    UsageError for one that is no backbone."""
    for name, own in (node["members"] or {}).items():
        if not isinstance(own, Mapping) or "_target_" not in own:
            use = f"+backbone@backbone.members.{name}=conv4"
            raise UsageError(f"backbone.members.{name} is no backbone; add it by {use}")
        norm = {"norm": node["norm"]} if node.get("norm") and "norm" in own else {}
        yield name, {**bare(own), **norm}


def own_values(node: Mapping[str, Any]) -> dict[str, Any]:
    """What the ensemble itself takes, beside its members."""
    return {name: value for name, value in node.items() if name not in ("members", "norm")}


def changed_members(
    node: Mapping[str, Any], change: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The node with each member after `change`."""
    changed = {}
    for name, own in node["members"].items():
        with of_member(name):
            changed[name] = dict(change(dict(own)))
    return {**node, "members": changed}


@contextmanager
def of_member(name: str) -> Iterator[None]:
    """Say of which member a mistake is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"backbone.members.{name}: {error}") from None


def built(
    node: Mapping[str, Any], build: Callable[[dict[str, Any], int], Member]
) -> tuple[dict[str, Any], list[Report]]:
    """`members` and `widths` of the ensemble `node`, and the reports of what was loaded.

    build: from the node of a member and its number to itself. Frozen members of one node and one
    file of weights are one module: they take the memory of one.
    """
    made: dict[str, Member] = {}
    kept: dict[str, Member] = {}
    frozen = node.get("frozen", True)
    for number, (name, own) in enumerate(members(node)):
        still = frozen is True or (isinstance(frozen, list | tuple) and name in frozen)
        # A run that is opened again has its members' weights itself, and what their files were.
        file = own.get("sha256") or own.get("weights")
        same = {**own, "weights": None, "sha256": file}
        key = json.dumps(same, sort_keys=True) if still and file else name
        with of_member(name):
            if key not in kept:
                kept[key] = build(own, number)
        made[name] = kept[key]
    reports = [member.report for member in kept.values() if member.report is not None]
    modules = {name: member.module for name, member in made.items()}
    return {"members": modules, "widths": [m.width for m in made.values()]}, reports


def joined(reports: list[Report]) -> Report | None:
    """What became of the weights of all members; None without any."""
    if not reports:
        return None
    return Report(
        " and ".join(report.source for report in reports),
        None,
        matched=[name for report in reports for name in report.matched],
        missing=[name for report in reports for name in report.missing],
        unexpected=[name for report in reports for name in report.unexpected],
        head="no heads of theirs",
        share=min(report.share for report in reports),
        changed=[name for report in reports for name in report.changed],
    )
