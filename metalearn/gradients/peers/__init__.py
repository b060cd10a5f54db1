"""Other packages' engines behind the same interface, to switch to, compare and trust."""

from metalearn.gradients.peers.higher import Higher
from metalearn.gradients.peers.learn2learn import Learn2learn

__all__ = ["Higher", "Learn2learn"]
