"""Any text encoder of the package transformers, from a local folder, and a linear head.

    f(x) = sum over t of  m_t h_t / sum over t of  m_t,   or h_1      h = encoder(x, m)

h_t is the encoder's last state of token t, m_t 0 where that is padding. Reimers, Gurevych:
Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, 2019, section 3 (mean and CLS).
"""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from metalearn.backbones.encoder_folder import random_encoder, small, told
from metalearn.errors import UsageError

Pooling = Literal["mean", "cls"]

_ROWS = 32  # texts that pass through an encoder together on a processor


class TextEncoder(nn.Module):
    """The encoder that the configuration in `folder` describes, with random weights.

    ways: N of the head; None leaves it out. folder: has the `config.json`, or the name of an
        installed package with one in it; nothing is downloaded, and no code in it is run.
    pooling: of the states of a text, "mean" over its tokens or "cls", the first. dropout: of every
        layer; None for what the configuration says.

    Its attention is written out ("eager"), which has every derivative. The pooler of some encoders,
    which reads the first state alone, is left out. Raises UsageError where the package or the
    configuration is missing, or there is no such encoder.
    """

    def __init__(
        self,
        ways: int | None = 5,
        folder: str | Path | None = None,
        pooling: Pooling = "mean",
        dropout: float | None = 0.0,
    ):
        super().__init__()
        if pooling not in get_args(Pooling):
            raise UsageError(f"backbone.pooling={pooling} is not known; use mean or cls")
        if dropout is not None and not 0 <= dropout < 1:
            raise UsageError(f"backbone.dropout={dropout} must be 0 or more and below 1, or null")
        self.pooling: Pooling = pooling
        self.folder = str(folder)
        self.body = random_encoder(folder, dropout)
        self.body.train()
        self.vocabulary = self.body.get_input_embeddings().num_embeddings
        self.positions = _positions(self.body)
        with torch.no_grad(), told(folder):
            width, self.takes_square = _tried(self.body)
        self.head = nn.Identity() if ways is None else nn.Linear(width, ways)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """`{"ids": [B, L], "mask": [B, L]}` to `[B, N]`, or to the features `[B, D]`.

        Raises UsageError for other inputs, and where L is more than the encoder has positions for.
        """
        if not isinstance(x, dict) or {"ids", "mask"} - x.keys():
            raise UsageError(
                "backbone=transformers takes texts, ids and a mask; use dataset=intents"
            )
        ids, mask = x["ids"], x["mask"]
        if self.positions is not None and ids.shape[-1] > self.positions:
            raise UsageError(
                f"a text has {ids.shape[-1]} tokens, more than the {self.positions} positions of "
                f"the encoder in {self.folder}; use dataset.length={self.positions}"
            )
        if _readable(mask):
            return self.head(self._by_length(ids, mask))
        given = _square(mask, self._dtype) if self.takes_square else mask
        return self.head(self._features(ids, mask, given))

    @property
    def _dtype(self) -> torch.dtype:
        return self.body.get_input_embeddings().weight.dtype

    def _features(self, ids: Tensor, mask: Tensor, given: Tensor) -> Tensor:
        states = self.body(input_ids=ids, attention_mask=given)[0]
        return pooled(states, mask, self.pooling)

    def _by_length(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The features of texts, those of like length together: less padding to compute."""
        place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = ((mask != 0) * place).amax(1).clamp(min=1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(len(ids) if ids.is_cuda else _ROWS):
            longest = int(lengths[rows[-1]])
            text, own = ids[rows, :longest], mask[rows, :longest]
            parts.append(self._features(text, own, own))
        return torch.cat(parts)[order.argsort()]


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """`[B, L, D]` to `[B, D]`; mask: `[B, L]`, 0 at padding."""
    if pooling == "cls":
        return states[:, 0]
    mask = mask.to(states.dtype).unsqueeze(-1)
    return (states * mask).sum(-2) / mask.sum(-2).clamp(min=1)


def _positions(body: Any) -> int | None:
    """How many tokens a text may have; None where nothing says so."""
    known = getattr(body.config, "max_position_embeddings", None)
    for name, part in body.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(part, nn.Embedding):
            # RoBERTa and its like count from behind the id of padding.
            taken = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - taken
    return known if isinstance(known, int) and known > 0 else None


def _tried(body: Any) -> tuple[int, bool]:
    """The width of the states of a small text, and whether a mask `[B, 1, 1, L]` does the same as
    one of `[B, L]`."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    was, like = body.training, body.get_input_embeddings().weight.dtype
    body.eval()
    try:
        states = small(body, mask)
        try:
            same = small(body, _square(mask, like))
            takes = torch.allclose((same - states)[mask.bool()], states.new_zeros(()), atol=1e-5)
        except Exception:  # of a network that takes no other mask
            takes = False
    finally:
        body.train(was)
    return states.shape[-1], takes


def _square(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, 1, 1, L]`, to be added to attention's scores: 0, or the least number at padding."""
    return (1 - mask.to(dtype))[:, None, None, :] * torch.finfo(dtype).min


def _readable(mask: Tensor) -> bool:
    """Whether Python may look into `mask`, as transformers does: not under `vmap`, which has many
    of them, nor while a graph is traced or captured."""
    if torch.compiler.is_compiling() or (mask.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    try:
        bool(mask.all())
    except RuntimeError:
        return False
    return True
