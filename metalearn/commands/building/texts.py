"""Whether a network can read the tokens of a data set of texts."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from metalearn.backbones import TextEncoder
from metalearn.backbones.encoder_folder import configuration
from metalearn.commands.building.arguments import target
from metalearn.data import TensorDataset
from metalearn.data.intents import WORDS
from metalearn.errors import UsageError
from metalearn.types import Inputs, map_tensors


def check_tokenizer(config: Mapping[str, Any]) -> None:
    """Raise UsageError for an encoder whose folder has no configuration, or that is given the ids
    of another's words."""
    node = config["backbone"]
    if target(node["_target_"], "backbone._target_") is not TextEncoder:
        return
    configuration(node.get("folder"))
    if (config.get("dataset") or {}).get("tokenizer") == WORDS:
        raise UsageError(
            f"dataset.tokenizer={WORDS} numbers words by their hash, which backbone=transformers "
            f"does not know; use dataset.tokenizer={node.get('folder') or '<its folder>'}"
        )


def check_tokens(module: nn.Module, x: Inputs) -> None:
    """Raise UsageError where `x`, texts `[n, L]`, has ids that `module` has no vector for."""
    known = getattr(module, "vocabulary", None)
    if not isinstance(known, int) or not isinstance(x, dict) or "ids" not in x:
        return
    if (largest := int(x["ids"].max())) >= known:
        encoder = isinstance(module, TextEncoder)
        use = "dataset.tokenizer=<its folder>" if encoder else f"backbone.vocabulary={largest + 1}"
        raise UsageError(
            f"the tokens of the texts go up to {largest}, and the backbone knows {known} of them, "
            f"from 0; use {use}"
        )


def check_texts(module: nn.Module, dataset: Any) -> None:
    """`check_tokens` of every text of a data set of tensors; of images nothing."""
    if isinstance(dataset, TensorDataset):
        check_tokens(module, dataset.x)


def first_texts(dataset: Any) -> Inputs | None:
    """Two inputs of a data set of tensors, for a network to be tried on; None for images."""
    return map_tensors(lambda t: t[:2], dataset.x) if isinstance(dataset, TensorDataset) else None
