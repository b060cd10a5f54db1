"""The fifteen common corruptions in five severities, batched, without any file."""

from metalearn.episodes.corruptions.constants import CORRUPTIONS
from metalearn.episodes.corruptions.source import CorruptedEpisodes, Corruption, corrupted

__all__ = ["CORRUPTIONS", "CorruptedEpisodes", "Corruption", "corrupted"]
