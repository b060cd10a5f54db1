"""What a user gets for each image: a file of answers, and the least certain of them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from metalearn.evaluation.own_images.adapter import Adapter
from metalearn.evaluation.own_images.calibration import (
    Calibration,
    Estimate,
    calibration,
    folds,
    probabilities,
    wilson,
)
from metalearn.evaluation.own_images.sheets import answers_sheet


@dataclass(frozen=True)
class Answers:
    """names: of the images. p: `[n, N]`, of the classes. beside: how many other images an answer
    depends on. truth: the class of each image, None where it is not known. seen: `[n]`, whether an
    image is one of those that were adapted to."""

    names: Sequence[str]
    classes: Sequence[str]
    p: np.ndarray
    calibrated: bool
    beside: int
    seen: np.ndarray
    truth: Sequence[str] | None = None

    @property
    def order(self) -> np.ndarray:
        """The classes of each image from the likeliest on, `[n, N]`; of equals the first."""
        return np.argsort(-self.p, axis=1, kind="stable")

    @property
    def accuracy(self) -> Estimate | None:
        """With its interval, of the images that were not adapted to; None where the truth is not
        known, or there are none."""
        if self.truth is None or self.seen.all():
            return None
        first = np.array([self.classes[c] for c in self.order[:, 0]])
        right = (first == np.array(self.truth))[~self.seen]
        return wilson(float(right.mean()), len(right))

    def table(self) -> str:
        """A line an image, as CSV: `file`, `class`, `confidence`, the second class, the margin
        between the two, whether the confidence is calibrated, `beside`, and every class's share."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        truth = [] if self.truth is None else ["truth"]
        head = ["file", "class", "confidence", "second_class", "second_confidence", "margin"]
        shares = [f"p_{_utf8(name)}" for name in self.classes]
        writer.writerow([*head, "calibrated", "depends_on_others", *truth, *shares])
        for row, (name, order) in enumerate(zip(self.names, self.order, strict=True)):
            first, second = (float(self.p[row, c]) for c in order[:2])
            known = [] if self.truth is None else [_utf8(self.truth[row])]
            writer.writerow([
                _utf8(name), _utf8(self.classes[int(order[0])]), f"{first:.6f}",
                _utf8(self.classes[int(order[1])]), f"{second:.6f}", f"{first - second:.6f}",
                "yes" if self.calibrated else "no", self.beside, *known,
                *(f"{share:.6f}" for share in self.p[row]),
            ])  # fmt: skip
        return text.getvalue()

    def uncertain(self, pixels: np.ndarray) -> Image.Image:
        """The images with the least confidence, the least first."""
        places = np.argsort(self.p.max(1), kind="stable")[:24]

        def lines(row: int) -> list[str]:
            shares = [f"{self.p[row, c]:.0%} {self.classes[c]}" for c in self.order[row, :2]]
            known = [] if self.truth is None else [f"is {self.truth[row]}"]
            return [*shares, self.names[row].rpartition("/")[2], *known]

        how = "calibrated" if self.calibrated else "not calibrated"
        title = f"the least certain of {len(self.names)} images; confidence {how}"
        first = [self.classes[c] for c in self.order[:, 0]]
        wrong = [self.truth is not None and self.truth[row] != first[row] for row in places]
        return answers_sheet(pixels[places], [lines(row) for row in places], title, wrong)


def _utf8(text: str) -> str:
    """Of a name in another encoding, which a file in UTF-8 cannot hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def calibrated(
    adapter: Adapter, support: np.ndarray, labels: np.ndarray, groups: np.ndarray, ways: int,
    beside: np.ndarray | None = None,
) -> Calibration | None:  # fmt: skip
    """By held-out shots: of pixels `[S, H, W, C]`. None where a class has one image, or copies of
    one. groups: `[S]`, what is one picture. beside: the images to answer, for an algorithm that
    sees them."""
    if min(len(np.unique(groups[labels == c])) for c in range(ways)) < 2:
        return None
    seen = None if beside is None else adapter.prepared(beside)
    if not (held := folds(labels, groups)):
        return None
    return calibration(*adapter.held_out(adapter.prepared(support), labels, held, ways, seen))


def answered(
    adapter: Adapter, support: np.ndarray, labels: np.ndarray, pixels: np.ndarray, ways: int,
    temperature: float,
) -> np.ndarray:  # fmt: skip
    """The shares of the classes `[n, N]` for pixels `[n, H, W, C]`.

    Of a network whose answers do not depend on one another, a part of the images at a time.
    """
    given = adapter.prepared(support), labels
    if not adapter.alone:
        return probabilities(adapter.logits(*given, adapter.prepared(pixels), ways), temperature)
    fitted = adapter.adapted(*given)
    parts = []
    for start in range(0, len(pixels), 1024):
        x = adapter.prepared(pixels[start : start + 1024])
        parts.append(adapter.answers(fitted, x, ways))
    return probabilities(np.concatenate(parts), temperature)
