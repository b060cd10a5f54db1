"""Small encoders of the package transformers, and texts for them, in folders as users have them."""

import json
from pathlib import Path

import pytest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "is", "very", "good", ",", "?", *"abcdef", *"0123"]


def needs_transformers() -> None:
    """Skip, with the reason, where the package is not installed."""
    pytest.importorskip("transformers", reason="no package transformers: uv sync --extra text")


def encoder_folder(folder: Path, kind: str = "Bert", save: bool = True, **options: object) -> Path:
    """`config.json`, a tokenizer and, with `save`, random weights of a network of two layers."""
    import transformers

    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2)
    sizes |= {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 12}
    sizes |= {"max_position_embeddings": 16, **options}  # type: ignore[dict-item]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    folder.mkdir(parents=True)
    if save:
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return folder


def intents_folder(root: Path, copies: int = 4) -> Path:
    """Six classes of `copies` texts, in the layout of the folder `intents`."""
    place = root / "banking77"
    (place / "splits" / "01").mkdir(parents=True)
    rows = [
        {"sentence": f"Is {label} {'very ' * n}good, {n}?", "label": label}
        for n in range(copies)
        for label in "abcdef"
    ]
    (place / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, labels in {"train": "ab", "val": "cd", "test": "ef"}.items():
        (place / "splits" / "01" / f"{split}.txt").write_text("\n".join(labels))
    return root
