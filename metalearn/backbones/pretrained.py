"""Any classifier of torchvision or timm by its name, with random weights."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from metalearn.errors import UsageError, nearest, reason_of
from metalearn.functional.norms import BatchNorm, follow_support, replace_norms
from metalearn.functional.torch_private import NormBase

# Both libraries are imported where they are used: seconds that no other backbone should cost.

PretrainedNorm = Literal["transductive", "running", "frozen"]


def torchvision_model(
    name: str,
    outputs: int | None = 5,
    channels: int = 3,
    size: int = 224,
    norm: PretrainedNorm = "transductive",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The torchvision classifier `name`, such as "resnet18" or "convnext_tiny".

    outputs: N of the head; None leaves the last linear layer out, and the output is the
        features `[B, D]`.
    channels, size: of the square input images `[B, channels, size, size]`. For other than 3
        channels the first convolution takes the sum or a repetition of its own weights.
    norm: of the batch norms: "transductive" (the batch at hand), "running" or "frozen" (running
        averages, which the outer loop moves or leaves), see `metalearn.backbones.norms`.
    options: further arguments of torchvision's builder.

    Raises UsageError for an unknown name, or images that the network cannot take.
    """
    import torchvision
    from timm.models import adapt_input_conv

    _check_name(name, torchvision.models.list_models(torchvision.models), "torchvision")
    given = dict(options or {})
    if name.startswith("vit_"):
        given.setdefault("image_size", size)
    if name in ("googlenet", "inception_v3"):
        given = {"aux_logits": False, "init_weights": True, **given}
    if outputs is not None:
        given["num_classes"] = outputs
    net = _built(lambda: torchvision.models.get_model(name, weights=None, **given), name)
    if outputs is None:
        path, last = list(net.named_modules())[-1]
        if not isinstance(last, nn.Linear):
            raise UsageError(f"{name} does not end in a linear layer; give it outputs")
        net.set_submodule(path, nn.Identity())
    if channels != 3:
        first = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
        first.weight = nn.Parameter(adapt_input_conv(channels, first.weight.detach()))
        first.in_channels = channels
    return _ready(net, name, channels, size, norm)


def timm_model(
    name: str,
    outputs: int | None = 5,
    channels: int = 3,
    size: int = 224,
    norm: PretrainedNorm = "transductive",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The timm classifier `name`, such as "resnet18d" or "vit_tiny_patch16_224".

    outputs: N of the head; None leaves it out, and the output is the pooled features `[B, D]`.
    options: further arguments of the model, such as `patch_size`. The other arguments, and the
    errors, are those of `torchvision_model`.
    """
    import timm

    _check_name(name.partition(".")[0], timm.list_models(), "timm")
    given = {"num_classes": outputs or 0, "in_chans": channels, **(options or {})}

    def build() -> nn.Module:
        try:
            return timm.create_model(name, pretrained=False, **{"img_size": size, **given})
        except TypeError as error:
            # Convolutional networks take any size and have no such argument.
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, pretrained=False, **given)

    return _ready(_built(build, name), name, channels, size, norm)


def _check_name(name: str, known: list[str], library: str) -> None:
    if name not in known:
        raise UsageError(f"{library} has no classifier {name!r}{nearest(name, known)}")


def _built(build: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return build()
    except Exception as error:  # of any of a thousand networks
        use = "correct backbone.options"
        raise UsageError(f"backbone {name}: {reason_of(error)}; {use}") from error


def _ready(net: nn.Module, name: str, channels: int, size: int, norm: str) -> nn.Module:
    """`net` with its norms as asked for, after one image has passed through it."""
    policies = get_args(PretrainedNorm)
    if norm not in policies:
        raise UsageError(f"norm={norm!r} is not known to {name}; use {', '.join(policies)}")
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, channels, size, size))
    except Exception as error:
        raise UsageError(
            f"backbone {name} cannot take images of {channels}x{size}x{size}: {reason_of(error)}; "
            "use another images.size"
        ) from error
    net.train()
    if norm == "transductive":
        return net
    norms = {n: p for n, p in net.named_modules() if isinstance(p, NormBase)}
    for part in norms.values():
        # Not eval(), which would reach the dropout and the activation inside timm's.
        part.training = False
    if norm == "frozen":
        return net
    net = replace_norms(net)
    for path, before in norms.items():
        part = net.get_submodule(path)
        if before.running_mean is None or not isinstance(part, BatchNorm | NormBase):
            continue  # without averages, whatever its mode
        if isinstance(part, NormBase):
            follow_support(part)
        part.momentum = 0.1 if before.momentum is None else before.momentum
    return net
