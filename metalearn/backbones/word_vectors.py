"""The mean of a text's word vectors, as in fastText: what a text encoder is to be better than.

    f(x) = sum over t of  m_t E[x_t] / sum over t of  m_t

Joulin, Grave, Bojanowski, Mikolov: Bag of Tricks for Efficient Text Classification, 2016.
"""

from torch import Tensor, nn

from metalearn.errors import UsageError


class WordVectors(nn.Module):
    """A vector for each token id, their mean, and a linear head.

    ways: N of the head; None leaves it out. vocabulary: token ids, 0 to vocabulary - 1. width: D.
    Raises UsageError for numbers below 1.
    """

    def __init__(self, ways: int | None = 5, vocabulary: int = 1 << 14, width: int = 64):
        super().__init__()
        if min(vocabulary, width) < 1:
            raise UsageError(f"vocabulary={vocabulary} and width={width} must be 1 or more")
        self.vocabulary = vocabulary
        self.vectors = nn.Embedding(vocabulary, width)
        self.head = nn.Identity() if ways is None else nn.Linear(width, ways)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """`{"ids": [B, L], "mask": [B, L]}` to `[B, N]`, or to the means `[B, D]`."""
        if not isinstance(x, dict) or {"ids", "mask"} - x.keys():
            raise UsageError("word_vectors takes texts, ids and a mask; use dataset=intents")
        vectors = self.vectors(x["ids"])
        mask = x["mask"].to(vectors.dtype).unsqueeze(-1)
        return self.head((vectors * mask).sum(-2) / mask.sum(-2).clamp(min=1))
