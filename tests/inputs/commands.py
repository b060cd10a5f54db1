"""Bad folders, stores, manifests and arguments, given to the command `metalearn`."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from tests import preloaded
from tests.command import FAST, Outcome, metalearn
from tests.inputs import files
from tests.inputs.case import Case, Place
from tests.inputs.files import png_claiming, write_images
from tests.inputs.server import serving

SMALL = ("dataset=glyphs", "dataset.classes=24", "dataset.size=8")
STORE = "glyphs-v3-8px-24x20-seed0"


def command(words: str, said: str, **more: Any) -> Case:
    """`metalearn <words>` where nothing lies."""
    return Case(f"`metalearn {words}`", said, lambda place: metalearn(*words.split()), **more)


def pets(
    given: str, said: str, spoil: Callable[[Path], object] | None = None, *overrides: str
) -> Case:
    """`data prepare dataset=folder` on three class folders, spoilt."""

    def ready(place: Place) -> None:
        write_images(place.user / "pets", "cat", "cow", "dog")
        if spoil:
            spoil(place.user / "pets")

    def act(place: Place) -> Outcome:
        asked = ["dataset=folder", "dataset.root=pets", "dataset.size=8", *overrides]
        return metalearn("data", "prepare", *asked)

    return Case(f"`dataset=folder` {given}", said, act, ready)


def bad_tiff(root: Path) -> None:
    """One that Pillow warns of, and logs, before it gives up."""
    file = root / "cow" / "0.tif"
    Image.new("RGB", (8, 8)).save(file)
    data = bytearray(file.read_bytes())
    at = data.index((277).to_bytes(2, "little"), 8)  # samples a pixel
    data[at + 8 : at + 10] = (244).to_bytes(2, "little")
    file.write_bytes(data)


def lists(**names: str) -> Callable[[Path], None]:
    """Lists of classes beside the pictures."""

    def spoil(root: Path) -> None:
        for split, text in names.items():
            (root / f"{split}.txt").write_bytes(text.encode("latin-1"))

    return spoil


def only(*labels: str) -> Callable[[Path], object]:
    """Other class folders than the three."""

    def spoil(root: Path) -> None:
        for folder in list(root.iterdir()):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        write_images(root, *labels)

    return spoil


def rar(root: Path) -> None:
    (root / "x.rar").write_bytes(b"Rar!")


def twin(root: Path) -> None:
    (root / "kitten").symlink_to("cat")


BY_LISTS = "dataset.splits=pets"
FOLDERS = [
    pets("with a text named .png", "cow/1.png in", files.damage),
    pets("with a PNG cut short", "cow/1.png in", files.cut),
    pets("with a PNG of 40000x40000 pixels", "cow/1.png in", files.vast),
    pets(
        "with a PNG of 12000x10000 pixels",
        "12000x10000 pixels",
        lambda root: (root / "cow" / "1.png").write_bytes(png_claiming(12_000, 10_000)),
    ),
    pets("with a TIFF of 244 samples a pixel", "cow/0.tif in", bad_tiff),
    pets("with an image at the top", "pets itself; put every image", files.loose),
    pets("with a link to nowhere", "pets/cow/1.png (No such file", files.unreadable),
    pets("without images", "there are no images in", only()),
    pets("of two classes", "has 2 classes, and fractions=", only("cat", "dog")),
    pets("without a folder val", "no folder val", only("train/cat", "test/dog")),
    pets(
        "with a class in two splits",
        "class cat of pets is in both",
        only("train/cat", "val/dog", "test/cat"),
    ),
    pets(
        "with a class in two lists",
        "class cow is in both train and val",
        lists(train="cat\ncow", val="cow", test="dog"),
        BY_LISTS,
    ),
    pets(
        "with a list that names an unknown class",
        "lacks, such as 'zebra'",
        lists(train="cat\nzebra", val="cow", test="dog"),
        BY_LISTS,
    ),
    pets("with an empty list", "names no class", lists(train="cat", val="", test="dog"), BY_LISTS),
    pets("with a list that is not UTF-8", "not UTF-8 text", lists(train="k\xe4se"), BY_LISTS),
    pets("with lists that are not there", "cannot read the list of classes", None, BY_LISTS),
    pets("cut into 0.5, 0.5, 0.5", "of sum 1", None, "dataset.fractions=[0.5,0.5,0.5]"),
    pets("of 2 channels", "channels=2", None, "dataset.channels=2"),
    pets("of size 0", "size=0", None, "dataset.size=0"),
    pets("with seed=-1", "dataset.seed=-1 must be 0 or more", None, "dataset.seed=-1"),
    pets("at a list of places", "must be text, a path or null", None, "dataset.root=[a]"),
    pets("that is nowhere", "there is no folder or archive", None, "dataset.root=nowhere"),
    pets("that is a .rar", "is no archive that is read: give", rar, "dataset.root=pets/x.rar"),
    pets("of days within classes", "say what a class is", only("cat/1", "cow/1", "dog/1")),
    pets("with a class that is a link to another", "are one file by a link", twin),
    pets("of few images each", "has no class left", None, "dataset.min_images=9"),
    pets("with min_images=0", "dataset.min_images=0 must be 1", None, "dataset.min_images=0"),
    pets("without a place", "dataset.root is missing", None, "dataset.root=null"),
]


def store(given: str, said: str, spoil: Callable[[Path], object], action: str = "prepare") -> Case:
    """A store that was made before, and spoilt since."""

    def ready(place: Place) -> None:
        assert metalearn("data", "prepare", *SMALL).code == 0
        spoil(place.cache / STORE)

    return Case(
        f"`metalearn data {action}` with {given}",
        said,
        lambda place: metalearn("data", action, *SMALL),
        ready,
    )


def cut_at(name: str, keep: float) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])

    return spoil


def edited(**fields: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "store.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def flip_last(folder: Path) -> None:
    data = bytearray((folder / "images.npy").read_bytes())
    data[-1] ^= 1
    (folder / "images.npy").write_bytes(data)


def open_header(folder: Path) -> None:
    """A brace of the header that nothing closes."""
    data = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(data.replace(b"}", b"(", 1))


def in_its_place(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file")


DAMAGED = "is damaged"
STORES = [
    store("store.json cut in half", DAMAGED, cut_at("store.json", 0.5)),
    store("store.json gone", DAMAGED, lambda folder: (folder / "store.json").unlink()),
    store("store.json of another version", "its format is 0, not 1", edited(format=0)),
    store("store.json with a number beyond all files", DAMAGED, edited(offsets=[0, 10**30])),
    store("images.npy cut short", DAMAGED, cut_at("images.npy", 0.9)),
    store("images.npy gone", DAMAGED, lambda folder: (folder / "images.npy").unlink()),
    store("a damaged header of images.npy", DAMAGED, open_header),
    store("one bit of images.npy changed", "digest does not match", flip_last, "verify"),
    store("a file where the store should be", DAMAGED, in_its_place),
]


def named(given: str, said: str, words: str, **variables: str) -> Case:
    """A command with other environment variables, where `a file` and `birds.tgz` lie."""

    def ready(place: Place) -> None:
        for name in ("a file", "birds.tgz"):
            (place.user / name).write_text("x")

    def act(place: Place) -> Outcome:
        with mock.patch.dict(os.environ, variables):
            return metalearn(*words.split())

    return Case(given, said, act, ready)


def missing_mirror(place: Place) -> Outcome:
    with serving(b"") as server:
        server.behave = lambda request, _: server.answer(request, 404, b"")
        with mock.patch.object(sys.modules["metalearn.data.cifar"], "MIRRORS", (server.url,)):
            return metalearn("data", "prepare", "dataset=cifar_fs")


PLACES = [
    named("METALEARN_DATA=nowhere", "is no folder", "data prepare dataset=cub",
          METALEARN_DATA="nowhere"),
    named("METALEARN_CACHE names a file", "METALEARN_CACHE", "data prepare",
          METALEARN_CACHE="a file"),
    named("METALEARN_CACHE names a file, and a tar is to be unpacked", "METALEARN_CACHE",
          "data prepare dataset=cub dataset.archive=birds.tgz",
          METALEARN_CACHE="a file"),
    Case("`metalearn data prepare dataset=cifar_fs`, where no mirror has it", "HTTP 404",
         missing_mirror),
]  # fmt: skip
EPISODES = "dataset.classes=24 dataset.size=8"
ARGUMENTS = [
    command("data prepar", "no data command prepar (did you mean prepare?)"),
    command("data prepare glyphs", "write name=value"),
    command("data prepare dataset=omniglo", "did you mean omniglot?"),
    command("data prepare dataset.sizee=8", "did you mean dataset.size?"),
    command("data prepare dataset.size=7", "a size of 8 to 512"),
    command("data prepare dataset.classes=many", "must be a whole number"),
    command("data prepare dataset.seed=-1", "dataset.seed=-1 must be 0 or more"),
    command("data prepare dataset=cub dataset.archive=nowhere", "there is no folder or archive"),
    command("data verify dataset=omniglot dataset.split=lake", "must be vinyals or random"),
    command(f"data show {EPISODES} split=dev", "split=dev is not known"),
    command("data show episode=first", "must be a whole number"),
    command(f"data show {EPISODES} out=data", "cannot write data"),
    command(f"data show {EPISODES} episode=0 episodes.ways=0", "must be 1 or more"),
    command(f"data manifest {EPISODES} episodes.ways=16", "use at most 5"),
    command(f"data manifest {EPISODES} episodes.shots=6", "has 20 examples; use at most 20"),
    command(f"data manifest {EPISODES} episodes.queries=0", "must be 1 or more"),
    command(f"data manifest {EPISODES} evaluation.split=dev", "split='dev' is not known"),
    command(f"data manifest {EPISODES} evaluation.episodes=0", "must be 1 or more"),
    command(f"data manifest {EPISODES} out=data", "cannot write data"),
    command(f"data manifest {EPISODES} out=/dev/null/m.json", "cannot write /dev/null/m.json"),
    command("data manifest dataset=sinusoid", "only episodes of images"),
    command("train augmentation=standrd", "did you mean standard?"),
    command("train augmentation=standard augmentation.support.flip=2", "must be 0 to 1"),
    command("train augmentation=standard augmentation.support.crop=-1", "must be 0 or more"),
    command("train augmentation=standard augmentation.support.flop=1", "no key"),
    command("train augmentation=standard dataset=sinusoid", "augmentation is for images"),
    command("train dataset=omniglo", "did you mean omniglot?"),
    command("evaluate run=nowhere manifest=m.json", "nowhere is not a run folder"),
]


DATA = ("dataset.classes=40", "dataset.size=16")
TRAIN = ("train", *DATA, *(word for word in FAST if "classes" not in word), "run_dir=run")


def listed(given: str, said: str, change: Callable[[dict[str, Any]], object]) -> Case:
    """A manifest file that was good, given to `train`."""

    def ready(place: Place) -> None:
        assert metalearn("data", "manifest", *DATA, "out=m.json").code == 0
        saved = json.loads(Path("m.json").read_text())
        change(saved)
        Path("m.json").write_text(json.dumps(saved))

    def act(place: Place) -> Outcome:
        return metalearn(*TRAIN, "evaluation.manifest=m.json")

    return Case(f"`evaluation.manifest=` {given}", said, act, ready)


def evaluated(place: Place) -> None:
    """A finished run, and a manifest of other data."""
    assert metalearn(*TRAIN).code == 0
    other = metalearn("data", "manifest", *DATA, "dataset.seed=1", "out=m.json")
    assert other.code == 0


def written(text: str) -> Callable[[Place], object]:
    return lambda place: (place.user / "m.json").write_text(text)


def example(number: int) -> Callable[[dict[str, Any]], object]:
    return lambda saved: saved["episodes"][3]["query"][0].__setitem__(0, number)


MANIFESTS = [
    Case(
        "`metalearn evaluate run=run manifest=` of other data",
        "it lists images of glyphs with hash",
        lambda place: metalearn("evaluate", "run=run", "manifest=m.json"),
        evaluated,
        slow=True,
    ),
    Case(
        "`evaluation.manifest=` that is not there",
        "nowhere.json (No such file or directory)",
        lambda place: metalearn(*TRAIN, "evaluation.manifest=nowhere.json"),
    ),
    Case(
        "`evaluation.manifest=` that is no JSON",
        "it is damaged",
        lambda place: metalearn(*TRAIN, "evaluation.manifest=m.json"),
        written("[1, 2"),
    ),
    listed("with an example that is not there", "example that its class lacks", example(99)),
    listed("with a number below 0", "numbers of examples must be 0 or more", example(-1)),
    listed(
        "with its episodes in another order",
        "not those that its hash names",
        lambda saved: saved["episodes"].reverse(),
    ),
    listed("without episodes", "it lists no episodes", lambda saved: saved.update(episodes=[])),
    listed("of split dev", "names split 'dev'", lambda saved: saved.update(split="dev")),
    Case(
        "`evaluation.manifest=` of other ways than the network's",
        "the manifest has 5 ways, but the network has 3 outputs",
        lambda place: metalearn(*TRAIN, "episodes.ways=3", "evaluation.manifest=m.json"),
        lambda place: metalearn("data", "manifest", *DATA, "out=m.json"),
    ),
]


PRETRAIN = [
    command("pretrain optimizer=lion", "optimizer=lion names no target; choose one"),
    command(
        "pretrain held_out.val=0.6 held_out.test=0.4", "must be 0 or more, and below 1 together"
    ),
    command("pretrain training.mixup=-1", "training.mixup=-1.0 must be 0 or more"),
    command("pretrain dataset=mixture", "pretrain takes images of one data set with classes"),
    command(
        "pretrain dataset.classes=60 dataset.size=8 training.batch_size=4000",
        "images are there to train on; use at most",
    ),
    Case(
        "`metalearn pretrain dataset=folder`, without classes to validate on",
        "pets has no classes in its val split",
        lambda place: metalearn(
            *("pretrain", "dataset=folder", "dataset.root=pets", "dataset.size=8"),
            *("dataset.fractions=[0.5,0,0.5]", "held_out.val=0", "held_out.test=0"),
        ),
        lambda place: write_images(place.user / "pets", *(f"c{c}" for c in range(10))),
    ),
]


def finished(process: preloaded.Process) -> Outcome:
    with process:
        out, err = process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out, err)


def killed(place: Place) -> Outcome:
    """Two prepare the same data; the one that writes is killed, the one that waits takes over.
    What it made is verified."""
    first = preloaded.metalearn("data", "prepare")
    deadline = time.monotonic() + 600
    while not list(place.cache.glob(".*.building-*/images.npy")):
        assert time.monotonic() < deadline and first.returncode is None, "too late to kill it"
        time.sleep(0.02)
    second = preloaded.metalearn("data", "prepare")
    first.send_signal(signal.SIGKILL)
    assert finished(first).code == -signal.SIGKILL
    assert finished(second).code == 0
    return finished(preloaded.metalearn("data", "verify"))


PROCESSES = [
    Case(
        "`python -m metalearn.cli data prepare dataset=omniglo`, a process of its own",
        "did you mean omniglot?",
        lambda place: finished(preloaded.metalearn("data", "prepare", "dataset=omniglo")),
        slow=True,
    ),
    Case(
        "two `metalearn data prepare` at once, of which one is killed (SIGKILL) as it writes; "
        "then `metalearn data verify`",
        "(verified)",
        killed,
        code=0,
        left="cache/.glyphs-*.building-*/*",
        why="which a later call removes once it is an hour old",
        slow=True,
    ),
]

COMMANDS: tuple[Case, ...] = (
    *FOLDERS,
    *STORES,
    *PLACES,
    *ARGUMENTS,
    *MANIFESTS,
    *PRETRAIN,
    *PROCESSES,
)
