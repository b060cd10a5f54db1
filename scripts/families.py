"""A small network of every model family of timm, torchvision and transformers: whether its
meta-gradient is that of a plain loop.

    python -m scripts.families run timm          # a record a family, to families.jsonl
    python -m scripts.families run torchvision
    python -m scripts.families run transformers  # where that is installed
    python -m scripts.families page              # families.md of the records

In float64 against `torch.autograd.grad` through two inner steps of torch's own module, task by
task; with the batch as a loop and under `vmap`; and once in float32.
"""

import argparse
import copy
import dataclasses
import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn import Batch, Engine, Episodes
from metalearn.algorithms import MAML
from metalearn.errors import UsageError
from metalearn.functional.outputs import outputs_of, tensor_of
from metalearn.functional.torch_private import TorchDispatchMode
from metalearn.gradients import Adjoint
from metalearn.inner import sgd

FOLDER = Path(__file__).parents[1] / "experiments" / "engine"
RATE, STEPS, WAYS, TASKS = 0.05, 2, 3, 2
CLOSE = 1e-8
SECONDS = 150  # of processor time, a family
VOCABULARY = 40


@dataclass(frozen=True)
class Row:
    """What became of one family. loop, vmap: relative error in float64; single: of float32."""

    package: str
    family: str
    network: str = ""
    weights: int = 0
    loop: float | None = None
    vmap: float | None = None
    single: float | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether it is held by a loop, and in float32 too."""
        return self.loop is not None and self.loop < CLOSE and self.single is not None


@dataclass(frozen=True)
class Family:
    """build: the network, of `WAYS` outputs. inputs: of `n` examples."""

    package: str
    name: str
    network: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Tensor]


class Late(BaseException):
    """A family took longer than `SECONDS`; no error that the check would look into."""


def tasks(family: Family, dtype: torch.dtype) -> Episodes:
    """Noise with labels: one example of each class, and as many queries."""
    g = torch.Generator().manual_seed(0)

    def batch() -> Batch:
        x = torch.stack([family.inputs(WAYS, g) for _ in range(TASKS)])
        x = x.to(dtype) if x.is_floating_point() else x
        return Batch(x, torch.arange(WAYS).repeat(TASKS, 1))

    return Episodes(batch(), batch())


def made(family: Family) -> nn.Module:
    """The network in train mode, its weights off their zeros, and without dropout, of which a plain
    loop could not repeat the masks."""
    torch.manual_seed(0)
    module = collapsed(family).double().train()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    for part in module.modules():
        for name in (
            "p",
            "drop_prob",
            "drop_rate",
            "dropout",
            "drop",
            "dropout_p",
            "attention_dropout",
        ):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return module


def collapsed(family: Family) -> nn.Module:
    """The network with one of each run of blocks that have weights of the same shapes, where it
    still takes its inputs: a dozen say no more than one, and take a dozen times as long."""
    module = family.build()
    for part in list(module.modules()):
        if not isinstance(part, nn.Sequential | nn.ModuleList):
            continue
        before: object = None
        kept = []
        for child in part:
            shapes = type(child), [p.shape for p in child.parameters()]
            if not shapes[1] or shapes != before:
                kept.append(child)
            before = shapes
        if len(kept) < len(part):
            del part[len(kept) :]
            for i, child in enumerate(kept):
                part[i] = child
    try:
        with torch.no_grad():
            x = family.inputs(2, torch.Generator().manual_seed(0))
            module.eval()(x.float() if x.is_floating_point() else x)
    except Exception:
        return family.build()
    return module


def hard_sigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """torch's own has no second derivative."""
    return F.relu6(x + 3) / 6


def plain_loop(module: nn.Module, episodes: Episodes) -> list[dict[str, Tensor]]:
    """The gradient of every task as one writes it: history of every step."""
    module = copy.deepcopy(module)
    start = {n: p for n, p in module.named_parameters() if p.requires_grad}
    of_tasks = []

    def loss(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(
            tensor_of(outputs_of(functional_call(module, weights, (batch.x,)))), batch.y
        )

    with sdpa_kernel(SDPBackend.MATH), mock.patch.object(F, "hardsigmoid", hard_sigmoid):
        for t in range(TASKS):
            one = episodes.map(lambda x, t=t: x[t])
            fast = dict(start)
            for _ in range(STEPS):
                grads = torch.autograd.grad(
                    loss(fast, one.support), list(fast.values()), create_graph=True,
                    allow_unused=True,
                )  # fmt: skip
                fast = {
                    n: w if g is None else w - RATE * g
                    for (n, w), g in zip(fast.items(), grads, strict=True)
                }
            found = torch.autograd.grad(
                loss(fast, one.query), list(start.values()), allow_unused=True
            )
            of_tasks.append(
                {
                    n: torch.zeros_like(w) if g is None else g.detach()
                    for (n, w), g in zip(start.items(), found, strict=True)
                }
            )
    return of_tasks


def ours(module: nn.Module, episodes: Episodes, batching: str) -> dict[str, Tensor]:
    algo = MAML(module, steps=STEPS, rule=sgd(RATE))
    return Engine(batching)(Adjoint(), algo, algo.init(), episodes)[0]["init"]


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """|a - b| / |b|."""
    off = sum(float((a[n].double() - b[n].double()).square().sum()) for n in b)
    return (off / max(sum(float(t.double().square().sum()) for t in b.values()), 1e-300)) ** 0.5


class Narrowing(TorchDispatchMode):
    """Sees whether a float64 becomes a float32."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wide = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        self.seen |= wide and kwargs.get("dtype") == torch.float32
        return func(*args, **kwargs)


def narrows(module: nn.Module, x: Tensor) -> bool:
    """Whether a forward pass in float64 does."""
    with torch.no_grad(), Narrowing() as mode:
        module(x)
    return mode.seen


def examine(family: Family) -> Row:
    """Everything about one family."""
    row, started = Row(family.package, family.name, family.network), time.process_time()
    try:
        try:
            module = made(family)
        except UsageError as error:
            return dataclasses.replace(row, reason=f"left out: {error}")
        row = dataclasses.replace(row, weights=sum(p.numel() for p in module.parameters()))
        episodes = tasks(family, torch.float64)
        one = episodes.map(lambda t: t[:1])
        try:
            loop = ours(module, one, "loop")
        except UsageError as error:
            return dataclasses.replace(row, reason=f"refused: {error}")
        of_tasks = plain_loop(module, episodes)
        want = of_tasks[0]
        row = dataclasses.replace(row, loop=apart(loop, want))
        if row.loop is not None and row.loop >= CLOSE and narrows(module, one.support.x[0]):
            row = dataclasses.replace(row, reason="it computes in float32 inside")
        mean = {n: sum(g[n] for g in of_tasks) / TASKS for n in want}
        try:
            row = dataclasses.replace(row, vmap=apart(ours(module, episodes, "vmap"), mean))
        except UsageError as error:
            row = dataclasses.replace(row, reason=f"{row.reason} loop alone: {error}".strip())
        single = ours(module.float(), tasks(family, torch.float32).map(lambda t: t[:1]), "loop")
        if all(g.isfinite().all() for g in single.values()):
            row = dataclasses.replace(row, single=apart(single, want))
        else:
            row = dataclasses.replace(row, reason=f"{row.reason} float32 is not finite".strip())
    except Late:
        row = dataclasses.replace(row, reason=f"not finished in {SECONDS} s of processor time")
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0] if lines else ''}"
        row = dataclasses.replace(row, reason=f"{row.reason} FAILS {said}".strip())
    return dataclasses.replace(row, seconds=round(time.process_time() - started, 1))


# ---------------------------------------------------------------- the families


def images(size: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, g: torch.randn(n, 3, size, size, generator=g, dtype=torch.float64)


def tokens(length: int) -> Callable[[int, torch.Generator], Tensor]:
    def ids(n: int, g: torch.Generator) -> Tensor:
        found = torch.randint(5, VOCABULARY, (n, length), generator=g)
        found[:, -1] = 2  # the end of the text, which some models look for
        return found

    return ids


_SMALL = (
    *("test_", "atto", "femto", "zepto", "pico", "nano", "tiny", "_xxs", "_xs", "xxt", "mini"),
    *("_050", "_035", "_s0", "_b0", "b0", "_t0", "_m0", "_small", "10", "_12", "18", "_s_", "_s"),
    *("_xx", "26", "_100", "_n", "_t", "_0", "13", "14", "002", "004", "34"),
)
_MOST = 20_000_000  # weights; a configuration within a configuration stays as large as it is
_SIZES = (32, 64, 96, 128, 160, 224, 240, 256)


def timm_families() -> Iterator[Family]:
    """The smallest network of each module of timm's, by its number of weights."""
    import timm

    for module in timm.list_modules():
        names = timm.list_models(module=module)

        def likely(name: str) -> tuple[int, int]:
            found = [i for i, part in enumerate(_SMALL) if part in name]
            return (found[0] if found else len(_SMALL), len(name))

        counted = []
        for name in sorted(names, key=likely)[: 1 if "test_" in "".join(names) else 3]:
            try:
                with torch.device("meta"):
                    net = timm.create_model(name, num_classes=WAYS)
                counted.append((sum(p.numel() for p in net.parameters()), name))
            except Exception:
                counted.append((10**8, name))
        if not counted:
            continue
        name = min(counted)[1]
        yield Family("timm", module, name, lambda name=name: _timm(name), images(0))


def _timm(name: str) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, num_classes=WAYS, img_size=_SIZE[0])
    except TypeError:
        return timm.create_model(name, num_classes=WAYS)


_SIZE = [32]


def fitted(family: Family, least: int = 0) -> Family:
    """A timm family with the smallest images from `least` on that its network takes."""
    for size in (size for size in _SIZES if size >= least):
        _SIZE[0] = size
        try:
            with torch.no_grad():
                family.build().eval()(torch.zeros(2, 3, size, size))
        except Exception:
            continue
        return dataclasses.replace(
            family, network=f"{family.network} at {size}", inputs=images(size)
        )
    return family


def torchvision_families() -> Iterator[Family]:
    """Narrow networks of torchvision's own classes."""
    from torchvision import models as m
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.models.vgg import make_layers

    def resnet(block: type, **given: Any) -> nn.Module:
        return m.ResNet(block, [1, 1, 1, 1], WAYS, **given)

    def vgg(norm: bool) -> nn.Module:
        net = m.VGG(make_layers([8, "M", 16, "M", 16, "M"], norm), WAYS, dropout=0.0)
        net.classifier = nn.Sequential(nn.Linear(16 * 49, 16), nn.ReLU(True), nn.Linear(16, WAYS))
        return net

    def alexnet() -> nn.Module:
        net = m.AlexNet(WAYS, dropout=0.0)
        net.classifier = nn.Sequential(
            nn.Linear(256 * 36, 16), nn.ReLU(inplace=True), nn.Linear(16, WAYS)
        )
        return net

    swin = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    swin |= {"window_size": [4, 4], "stochastic_depth_prob": 0.0, "num_classes": WAYS}
    v2 = {"block": m.swin_transformer.SwinTransformerBlockV2,
          "downsample_layer": m.swin_transformer.PatchMergingV2}  # fmt: skip
    maxvit = {"input_size": (32, 32), "stem_channels": 8, "partition_size": 2, "head_dim": 8}
    maxvit |= {"block_channels": [8, 16], "block_layers": [1, 1], "stochastic_depth_prob": 0.0}
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    cn = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    for name, size, build in (
        ("alexnet", 96, alexnet),
        ("convnext", 32, lambda: m.ConvNeXt(cn, 0.0, num_classes=WAYS)),
        ("densenet", 32, lambda: m.DenseNet(4, (2, 2, 2, 2), 8, num_classes=WAYS)),
        ("efficientnet", 64, lambda: m.efficientnet_b0(num_classes=WAYS)),
        ("efficientnet_v2", 64, lambda: m.efficientnet_v2_s(num_classes=WAYS)),
        ("googlenet", 32, lambda: m.GoogLeNet(WAYS, False, init_weights=False)),
        ("googlenet with auxiliary", 64, lambda: m.GoogLeNet(WAYS, True, init_weights=False)),
        ("inception", 96, lambda: m.Inception3(WAYS, False, init_weights=False)),
        ("maxvit", 32, lambda: m.MaxVit(**maxvit, num_classes=WAYS)),
        ("mnasnet", 32, lambda: m.MNASNet(0.25, WAYS)),
        ("mobilenet_v2", 32, lambda: m.MobileNetV2(WAYS, 0.25)),
        ("mobilenet_v3", 32, lambda: m.mobilenet_v3_small(num_classes=WAYS)),
        ("regnet_x", 32, lambda: m.regnet_x_400mf(num_classes=WAYS)),
        ("regnet_y", 32, lambda: m.regnet_y_400mf(num_classes=WAYS)),
        ("resnet", 32, lambda: resnet(BasicBlock)),
        ("resnext", 32, lambda: resnet(Bottleneck, groups=4, width_per_group=4)),
        ("wide resnet", 32, lambda: resnet(Bottleneck, width_per_group=16)),
        ("shufflenet_v2", 32, lambda: m.shufflenet_v2_x0_5(num_classes=WAYS)),
        ("squeezenet", 64, lambda: m.SqueezeNet("1_1", WAYS)),
        ("swin", 32, lambda: m.SwinTransformer(**swin)),
        ("swin_v2", 32, lambda: m.SwinTransformer(**swin, **v2)),
        ("vgg", 32, lambda: vgg(False)),
        ("vgg with batch norm", 32, lambda: vgg(True)),
        ("vit", 32, lambda: m.VisionTransformer(**vit, mlp_dim=16, num_classes=WAYS)),
    ):
        yield Family("torchvision", name, f"narrow, at {size}", build, images(size))


_TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embed_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 24),
    **dict.fromkeys(("d_ff", "n_inner", "hidden_dim", "ffn_hidden_size"), 24),
    **{"vocab_size": VOCABULARY, "max_position_embeddings": 32, "n_positions": 32},
    **{"image_size": 32, "patch_size": 8, "num_channels": 3, "head_dim": 8, "d_kv": 8},
    **{"embedding_size": 16, "word_embed_proj_dim": 16, "rotary_dim": 4, "num_labels": WAYS},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "axial_pos_embds": False},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    **{"use_cache": False, "embedding_dim": 16, "num_encoder_layers": 1, "num_decoder_layers": 1},
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    **{"v_head_dim": 8, "moe_intermediate_size": 16, "lm_head_dim": 16, "max_seq_len": 32},
    **{"decoder_start_token_id": 2, "type_vocab_size": 2, "shared_expert_intermediate_size": 16},
}


_MLA: dict[str, Any] = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_OWN: dict[str, dict[str, Any]] = {
    **{"axk1": _MLA, "axk2": _MLA, "deepseek_v2": _MLA, "deepseek_v3": _MLA},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
}
"""What a configuration needs besides, by the name of its family."""


def _cannot_be_set(kind: type, name: str) -> bool:
    held = getattr(kind, name, None)
    return isinstance(held, property) and held.fset is None


def transformers_families() -> Iterator[Family]:
    """Every model that classifies sequences of tokens or images, by tiny configurations."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for kind, inputs, table in (
        ("text", tokens(6), auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        ("images", images(32), auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    ):
        for name, model in table.items():
            model = model[0] if isinstance(model, tuple | list) else model

            def build(name: str = name, model: str = model) -> nn.Module:
                import transformers

                kind = CONFIG_MAPPING[name]
                usual = kind()
                numbers = {n for n in _TINY if isinstance(getattr(usual, n, None), int)}
                numbers -= {n for n in numbers if _cannot_be_set(kind, n)}
                given: dict[str, Any] = {n: v for n, v in _TINY.items() if n in numbers}
                if "qk_rope_head_dim" in numbers:  # the width of a head is two widths there
                    given.pop("head_dim", None)
                drops = ("dropout", "dropout_prob", "dropout_rate", "_pdrop", "drop_rate")
                given |= {
                    n: 0.0
                    for n, value in vars(usual).items()
                    if n.endswith(drops) and isinstance(value, float)
                }
                given |= _OWN.get(name, {})
                config = kind(**{n: v for n, v in given.items() if v is not None})
                config.pad_token_id = 0
                with torch.device("meta"):
                    large = getattr(transformers, model)(config)
                if (count := sum(p.numel() for p in large.parameters())) > _MOST:
                    raise UsageError(f"no tiny configuration: {count:,} weights")
                return getattr(transformers, model)(config)

            yield Family("transformers", name, f"{model} of {kind}", build, inputs)


LIBRARIES: dict[str, Callable[[], Iterator[Family]]] = {
    "timm": timm_families,
    "torchvision": torchvision_families,
    "transformers": transformers_families,
}


# ---------------------------------------------------------------- the record and the page


def run(package: str, path: Path, only: str | None) -> None:
    """Append a record for every family of the library that has none, or one of a failure."""
    known = {
        (r.package, r.family)
        for r in rows(path)
        if "FAILS" not in r.reason and (r.loop is None or r.loop < CLOSE)
    }

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGPROF, late)
    for family in LIBRARIES[package]():
        if (package, family.name) in known or (only and only not in family.name):
            continue
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        row = examine(fitted(family) if package == "timm" else family)
        if package == "timm" and row.loop is not None and row.loop >= CLOSE:
            # Batch norm over three maps of one pixel: rounding is all that is left of them.
            row = examine(fitted(family, least=96))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(dataclasses.asdict(row)), flush=True)
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def rows(path: Path) -> list[Row]:
    """The last record of each family, by library and family."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Row(**json.loads(line)) for line in lines]
    last = {(row.package, row.family): row for row in found}
    return [last[key] for key in sorted(last)]


def page(found: list[Row]) -> str:
    """families.md."""
    held = [r for r in found if r.exact]
    vmapped = [r for r in held if r.vmap is not None and r.vmap < CLOSE]
    worst = max((r.loop or 0 for r in held), default=0)
    text = [
        "# Model families",
        "",
        f"{len(held)} of {len(found)} families have the meta-gradient of a plain loop to "
        f"{CLOSE:g} in float64 as a loop (the worst: {worst:.1e}) and run in float32; "
        f"{len(vmapped)} under `vmap` too. The others stand with the reason or their error.",
        "",
        f"MAML with {STEPS} inner steps by `Adjoint`, {TASKS} tasks of {WAYS} ways and one shot, "
        "the smallest network and images of each family, in train mode with dropout at 0. Errors "
        "are |difference| / |gradient| against `torch.autograd.grad` through torch's own module, "
        "task by task; of float32 against the same in float64 (a ReLU or a maximum that decides "
        "otherwise shows there).",
        "",
        "    for library in timm torchvision transformers; do python -m scripts.families run "
        "$library; done",
        "    python -m scripts.families page",
        "",
        "| package | family | network | weights | loop | vmap | float32 | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        shown = ["-" if e is None else f"{e:.0e}" for e in (r.loop, r.vmap, r.single)]
        reason = r.reason.replace("|", "/")
        text.append(
            f"| {r.package} | {r.family} | {r.network} | {r.weights:,} | {' | '.join(shown)} "
            f"| {reason} |"
        )
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="meta-gradients of model families")
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("package", nargs="?", choices=tuple(LIBRARIES))
    parser.add_argument("--only", help="families whose name has this in it")
    parser.add_argument("--records", type=Path, default=FOLDER / "families.jsonl")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.what == "run":
        run(given.package, given.records, given.only)
    else:
        (FOLDER / "families.md").write_text(page(rows(given.records)))


if __name__ == "__main__":
    main()
