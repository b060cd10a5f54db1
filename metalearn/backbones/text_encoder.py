"""Any text encoder of the package transformers, from a local folder, and a linear head.

    f(x) = sum over t of  m_t h_t / sum over t of  m_t,   or h_1      h = encoder(x, m)

h_t is the encoder's last state of token t, m_t 0 where that is padding. Reimers, Gurevych:
Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, 2019, section 3 (mean and CLS).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from metalearn.backbones.weights import Weights
from metalearn.errors import UsageError, reason_of
from metalearn.runtime.files import packaged

Pooling = Literal["mean", "cls"]

_ROWS = 32  # texts that pass through an encoder together on a processor
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_RATES = ("dropout", "dropout_prob", "dropout_rate", "_pdrop", "drop_rate", "layerdrop")


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
        self.pooling, self.folder = pooling, str(folder)
        path, config = configuration(folder)
        if dropout is not None:
            for name, value in vars(config).items():
                if name.endswith(_RATES) and isinstance(value, int | float):
                    setattr(config, name, dropout)
        with _quiet(), _told(path):
            from transformers import AutoModel  # type: ignore[import-not-found]

            made = AutoModel.from_config(config, attn_implementation="eager")
            self.body = without_pooler(made.get_encoder() if _is_pair(config) else made)
        self.body.train()
        self.vocabulary = self.body.get_input_embeddings().num_embeddings
        self.positions = _positions(self.body)
        with torch.no_grad(), _told(path):
            width, self.takes_square = _tried(self.body, self.vocabulary)
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


def encoder_default(folder: str | Path | None) -> Weights:
    """The weights in a folder of the package transformers, under the names of a `TextEncoder`.

    Read by that package, which knows the names of older versions; never as code. sha256: of the
    file, where that is one. Raises UsageError where there are none, or they are not this encoder's.
    """
    path, config = configuration(folder)
    if not any(path.glob("*.safetensors*")) and not any(path.glob("*.bin*")):
        raise UsageError(
            f"{path} holds no {' or '.join(_WEIGHTS)}; put it there, or use backbone.weights=null "
            "for random weights"
        )
    with _quiet(), _told(path):
        from transformers import AutoModel  # type: ignore[import-not-found]

        made, told = AutoModel.from_pretrained(
            str(path), config=config, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, dtype=torch.float32,
        )  # fmt: skip
        body = without_pooler(made.get_encoder() if _is_pair(config) else made)
    names = set(body.state_dict())
    missing = sorted(
        n for n in told["missing_keys"] if n in names or n.removeprefix("encoder.") in names
    )
    if missing:
        raise UsageError(
            f"the weights in {path} lack {missing[0]} and {len(missing) - 1} more of the encoder "
            "that its config.json describes; take the files from one place"
        )
    tensors = {f"body.{n}": t.detach().clone() for n, t in body.state_dict().items()}
    files = [path / name for name in _WEIGHTS if (path / name).is_file()]
    digest = None
    if files:
        with files[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    safe = bool(files) and files[0].suffix == ".safetensors"
    form = "safetensors" if safe else "weights-only"
    return Weights(tensors, str(folder), digest, form=form if files else "library")


def without_pooler(module: nn.Module) -> Any:
    """`module` without the layer on its first state, whose output is not used."""
    if isinstance(getattr(module, "pooler", None), nn.Module):
        module.pooler = None  # type: ignore[assignment]
    return module


def configuration(folder: str | Path | None) -> tuple[Path, Any]:
    """The path of a folder of the package transformers, and what its `config.json` says.

    Raises UsageError where there is none, or one of an unknown network.
    """
    if folder is None:
        raise UsageError(
            "backbone=transformers needs backbone.folder=<folder with config.json, weights and a "
            "tokenizer>"
        )
    path = Path(folder).expanduser()
    if not path.exists() and (found := packaged(str(folder), "config.json")):
        path = min(found, key=lambda file: len(file.parts)).parent
    if not path.is_dir():
        raise UsageError(f"backbone.folder={folder} is no folder; give that of an encoder")
    if not (path / "config.json").is_file():
        raise UsageError(f"backbone.folder={folder} holds no config.json; give that of an encoder")
    try:
        from transformers import AutoConfig  # type: ignore[import-not-found]
    except ImportError as error:
        raise UsageError(
            f"backbone=transformers needs the package transformers ({reason_of(error)}); use "
            "pip install 'metalearn-torch[text]'"
        ) from None
    with _quiet(), _told(path):
        config = AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    return path, config


def _is_pair(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the package says of a folder that it cannot use, in one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of any of its networks
        reason = reason_of(error)
        raise UsageError(
            f"{path} holds no encoder that transformers can make ({reason}); give another "
            "backbone.folder"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's progress bars and warnings, which are told here."""
    try:
        from transformers.utils import logging  # type: ignore[import-not-found]
    except ImportError:
        yield
        return
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _positions(body: Any) -> int | None:
    """How many tokens a text may have; None where nothing says so."""
    known = getattr(body.config, "max_position_embeddings", None)
    for name, part in body.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(part, nn.Embedding):
            # RoBERTa and its like count from behind the id of padding.
            taken = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - taken
    return known if isinstance(known, int) and known > 0 else None


def _tried(body: Any, vocabulary: int) -> tuple[int, bool]:
    """The width of the states of a small text, and whether a mask `[B, 1, 1, L]` does the same as
    one of `[B, L]`."""
    ids = torch.arange(3, 9).remainder(vocabulary).view(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    was, like = body.training, body.get_input_embeddings().weight.dtype
    body.eval()
    try:
        states = body(input_ids=ids, attention_mask=mask)[0]
        try:
            same = body(input_ids=ids, attention_mask=_square(mask, like))[0]
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
        return bool(mask.all()) in (True, False)
    except RuntimeError:
        return False
