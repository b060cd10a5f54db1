"""What a user brings: tensors with names, a network and a loss for them, and their config files."""

from pathlib import Path

import torch
from torch import Tensor, nn

from metalearn.algorithms.losses import cross_entropy
from metalearn.data import TensorDataset
from metalearn.types import Batch, Metrics


def dataset() -> TensorDataset:
    """15 classes of 8 sentences: 4 tokens, mostly those of the class, of which some are masked. A
    target beside the class tells how much a sentence counts."""
    g = torch.Generator().manual_seed(0)
    classes = torch.arange(15).repeat_interleave(8)
    ids = (2 * classes.unsqueeze(1) + torch.randint(4, (120, 4), generator=g)) % 30
    mask = torch.arange(4) < torch.randint(2, 5, (120, 1), generator=g)
    importance = torch.rand(120, generator=g) + 0.5
    splits = {"train": range(7), "val": range(7, 10), "test": range(10, 15)}
    x = {"ids": ids, "mask": mask}
    return TensorDataset(x, classes, splits, {"importance": importance}, "sentences")


class Encoder(nn.Module):
    """The mean of the tokens that count; scores of `ways` classes, or features for None."""

    def __init__(self, ways: int | None):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.head = nn.Identity() if ways is None else nn.Linear(16, ways)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["mask"].unsqueeze(-1).to(self.embed.weight.dtype)
        return self.head((self.embed(inputs["ids"]) * mask).sum(-2) / mask.sum(-2))


def by_importance(logits: Tensor, batch: Batch, /) -> tuple[Tensor, Metrics]:
    """Cross-entropy, each example by its `importance`."""
    share = batch.y["importance"]
    weight = share if batch.weight is None else share * batch.weight
    loss, _ = cross_entropy(logits, batch._replace(weight=weight))
    metrics = cross_entropy(logits, batch)[1]
    return loss, {**metrics, "loss": loss.detach()}


def config_folder(folder: Path) -> str:
    """Config files for them under `folder`; the override that finds those."""
    for path, target, more in (
        ("dataset/sentences.yaml", "dataset", ""),
        ("backbone/encoder.yaml", "Encoder", "ways: ${outputs}\n"),
        ("loss/by_importance.yaml", "by_importance", "_partial_: true\n"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"_target_: tests.own_inputs.{target}\n{more}")
    return f"hydra.searchpath=[file://{folder}]"
