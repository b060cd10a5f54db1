"""The settings of a selection, with their types and defaults."""

from dataclasses import dataclass


@dataclass
class SampleSettings:
    """What the scores look at: at most so many classes of a split, and images of each."""

    split: str = "val"
    classes: int = 100
    images: int = 40


@dataclass
class ReachedSettings:
    """What the scores are held against."""

    split: str = "test"
    seed: int = 0
    episodes: int = 600
