"""A classifier measured: its accuracy on images of its classes, and on episodes of others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.classifiers import Cosine
from metalearn.engine.ranks import Ranks
from metalearn.episodes import FewShotEpisodes, Manifest
from metalearn.errors import Diverged
from metalearn.evaluation.features import FeatureEpisodes, used
from metalearn.evaluation.on_features import classifying, measure
from metalearn.training.base_images import ImageReader
from metalearn.training.classification import with_features
from metalearn.training.held_out_split import SPLIT, Subset

_TOGETHER = 256  # images


@dataclass(frozen=True, eq=False)
class Forward:
    """Logits and features of a network in eval mode, in full precision, without history.

    ranks: share the images, and every one has all that they give; None for this process alone.
    """

    reader: ImageReader
    device: torch.device
    channels_last: bool = False
    ranks: Ranks | None = None

    def laid_out(self, x: Tensor) -> Tensor:
        """`x` on the device, as the network lies in memory."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.to(self.device, non_blocking=True).contiguous(memory_format=layout)

    @torch.no_grad()
    def __call__(self, network: nn.Module, split: str, subset: Subset) -> tuple[Tensor, Tensor]:
        """`[n, N]` and `[n, D]` of the images `subset`; leaves `network` in eval mode."""
        network.eval()
        ranks, every = self.ranks or Ranks(), np.arange(len(subset))
        starts = range(0, len(subset), _TOGETHER)
        own = (starts[number] for number in ranks.share(len(starts)))
        pieces = (subset.at(every[start : start + _TOGETHER]) for start in own)
        images = (self.laid_out(self.reader(split, *piece)) for piece in pieces)
        found = [with_features(network, x) for x in images]
        if ranks.size > 1:
            parts = ranks.gathered([(logits.cpu(), features.cpu()) for logits, features in found])
            found = [tuple(t.to(self.device) for t in pair) for part in parts for pair in part]
        logits, features = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(features)


def classified(
    forward: Forward, network: nn.Module, subset: Subset
) -> tuple[np.ndarray, np.ndarray]:
    """For each image of base classes in `subset` whether it is classified right, 0 or 1, and its
    cross-entropy; both float64 `[n]`."""
    logits = forward(network, SPLIT, subset)[0].double()
    y = torch.from_numpy(subset.classes).to(logits.device)
    losses = F.cross_entropy(logits, y, reduction="none")
    right = ((logits.argmax(1) == y) & losses.isfinite()).double()
    return right.cpu().numpy(), losses.cpu().numpy()


def few_shot(
    forward: Forward,
    network: nn.Module,
    sources: Sequence[FewShotEpisodes],
    split: str,
    episodes: int,
) -> list[np.ndarray]:
    """Accuracies `[episodes]` for each of `sources`, which are of one data set, by the cosine with
    class means (Chen et al. 2021, eqs. 1 and 2). An image passes through the network once.

    Raises Diverged where its features are not finite.
    """
    if not sources:
        return []
    classes, examples, row = used(sources, split, episodes)
    # In double precision, so that a share of the queries is one.
    features = forward(network, split, Subset(classes, examples))[1].double().cpu()
    if lost := int((~features.isfinite().all(1)).sum()):
        raise Diverged(
            f"the features of {lost} of {len(features)} {split} images are not finite; lower "
            "optimizer.lr, or set training.clip_norm (earlier checkpoints are kept)"
        )
    head = classifying(Cosine(of_unit_length=False))
    manifests = (
        Manifest(FeatureEpisodes(source, features, row, split), split, episodes)
        for source in sources
    )
    return [measure(head, m, ranks=forward.ranks).accuracies for m in manifests]
