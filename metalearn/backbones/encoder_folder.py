"""A folder of the package transformers: its configuration, and the weights of its encoder.

Nothing is downloaded, and no code in the folder is run.
"""

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.backbones.weights import Weights
from metalearn.errors import UsageError, reason_of
from metalearn.runtime.files import packaged

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_RATES = ("dropout", "dropout_prob", "dropout_rate", "_pdrop", "drop_rate", "layerdrop")


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
    with _quiet(), told(path):
        config = AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    return path, config


def random_encoder(folder: str | Path | None, dropout: float | None) -> Any:
    """The encoder that the configuration in `folder` describes, its attention written out.

    dropout: of every layer; None for what the configuration says. Raises UsageError.
    """
    path, config = configuration(folder)
    if dropout is not None:
        for name, value in vars(config).items():
            if name.endswith(_RATES) and isinstance(value, int | float):
                setattr(config, name, dropout)
    with _quiet(), told(path):
        from transformers import AutoModel  # type: ignore[import-not-found]

        made = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
        return _encoder_of(made, config)


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
    with _quiet(), told(path):
        from transformers import AutoModel  # type: ignore[import-not-found]

        made, info = AutoModel.from_pretrained(
            str(path), config=config, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, dtype=torch.float32,
        )  # fmt: skip
        body = _encoder_of(made, config)
    names = set(body.state_dict())
    missing = sorted(
        n for n in info["missing_keys"] if n in names or n.removeprefix("encoder.") in names
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


def _encoder_of(made: Any, config: Any) -> Any:
    """The encoder of a pair, or `made` itself, without the layer on its first state, whose output
    is not used; where that has to be there, it is not learned.

    Raises UsageError for a network of anything but texts.
    """
    body = made.get_encoder() if getattr(config, "is_encoder_decoder", False) else made
    if not isinstance(body.get_input_embeddings(), nn.Embedding):
        raise UsageError(f"{type(body).__name__} is no encoder of texts; give another folder")
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):
        body.pooler = None
        try:
            small(body)
        except TypeError:
            body.pooler = pooler.requires_grad_(False)
    return body


def small(body: Any, mask: Tensor | None = None) -> Tensor:
    """The states of two texts of three tokens."""
    ids = torch.arange(3, 9).remainder(body.get_input_embeddings().num_embeddings).view(2, 3)
    return body(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask)[0]


@contextmanager
def told(path: str | Path | None) -> Iterator[None]:
    """What the package says of a folder that it cannot use, in one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of any of its networks
        reason = reason_of(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "its weights hold more than tensors, or are damaged"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights are of other sizes than its config.json says"
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
