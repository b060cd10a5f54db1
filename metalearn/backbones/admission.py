"""Which pre-trained weights may be used at all: strict selection, before anything is trained.

Every refusal is one line that says which criterion failed, and how to change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from metalearn.backbones.defaults import known_file
from metalearn.backbones.weights import Report, Weights
from metalearn.errors import UsageError

STRICT = "strict"
OWN = "own"
"""The licence of what `metalearn pretrain` made."""


@dataclass(frozen=True)
class Admission:
    """What weights must be, to be admitted.

    match: the share of the network's tensors, without a new head, that the file must have.
    pinned: the file's sha256 is given beforehand (`backbone.sha256`), or is one of those known.
    licences: of which one must be known of the file, or told by `backbone.licence`; what
        `metalearn pretrain` made needs none. Empty for any.
    formats: of files. Neither of the two runs code when it is read; a library's own downloads
        ("library") are read by the library.
    above_untrained: on so many episodes of validation classes the nearest centroid must be better
        by these weights than by random ones: the 95% interval of the paired difference lies above
        0. 0: not asked.
    """

    match: float = 0.99
    pinned: bool = True
    licences: Sequence[str] = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0")
    formats: Sequence[str] = ("safetensors", "weights-only")
    above_untrained: int = 100

    def __post_init__(self) -> None:
        """Raises UsageError for a number out of range."""
        if not 0 <= self.match <= 1:
            raise UsageError(f"backbone.admit.match={self.match} must be a share, 0 to 1")
        if self.above_untrained < 0 or self.above_untrained == 1:
            raise UsageError(
                f"backbone.admit.above_untrained={self.above_untrained} must be 0, or 2 episodes "
                "or more"
            )

    def check_file(self, weights: Weights, pin: str | None, licence: str | None) -> None:
        """Raise UsageError where the file itself is not admitted. pin, licence: what the
        configuration says of it."""
        known = known_file(weights.sha256)
        if weights.form not in self.formats:
            use = f"convert it to {' or '.join(self.formats)}, or set"
            raise _refused(weights.source, f"its format is {weights.form}", use, "formats")
        if self.pinned and pin is None and known is None:
            told = f"backbone.sha256={weights.sha256}" if weights.sha256 else "a file's"
            use = f"add {told} where that is the file you mean, or set"
            raise _refused(weights.source, "its sha256 is not known beforehand", use, "pinned")
        found = licence or (known.licence if known else None) or _own(weights)
        if self.licences and found not in (*self.licences, OWN):
            reason = f"its licence is {found or 'not known'}"
            use = "name it by backbone.licence=..., where that is so, or set"
            raise _refused(weights.source, reason, use, "licences")

    def check_match(self, report: Report) -> None:
        """Raise UsageError where less of the network came from the file."""
        share = len(report.matched) / max(1, len(report.matched) + len(report.missing))
        if min(share, report.share) < self.match:
            reason = (
                f"{share:.1%} of the network's tensors, and {report.share:.1%} of the numbers of "
                f"its body, came from it, not {self.match:.1%}"
            )
            raise _refused(
                report.source, reason, "choose the backbone that it is of, or set", "match"
            )


def _own(weights: Weights) -> str | None:
    return OWN if {"backbone", "classes", "steps"} <= weights.told.keys() else None


def _refused(source: str, reason: str, use: str, criterion: str) -> UsageError:
    return UsageError(f"{source} is not admitted: {reason}; {use} backbone.admit.{criterion}")
