"""A run that is published, pulled and measured again: the same digits, nothing personal, no file
that is not what it says."""

import csv
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from metalearn.training.publication import shared
from tests.command import FAST, metalearn


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Iterator[Path]:
    """A folder with a run on images of its own, tested on a manifest, and what was published."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("METALEARN_CACHE", str(data_cache))
        rng = np.random.default_rng(0)
        for c in range(12):
            (folder / "mine" / f"c{c:02d}").mkdir(parents=True)
            for i in range(8):
                image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
                image.save(folder / "mine" / f"c{c:02d}" / f"{i}.png")
        data = ["dataset=folder", f"dataset.root={folder}/mine", "dataset.size=16"]
        data += ["dataset.fractions=[.5,.25,.25]", "episodes.ways=3", "episodes.queries=3"]
        listed = metalearn("data", "manifest", *data, "evaluation.episodes=6", "out=list.json")
        assert listed.code == 0, listed.err
        run = [*(o for o in FAST if not o.startswith("dataset.")), *data, "batching=loop"]
        run += ["training.queries=3", "evaluation.manifest=list.json", "run_dir=runs/r"]
        run += ["tracker.entity=me", "tracker.project=secret"]
        assert metalearn("train", *run).code == 0
        outcome = metalearn("publish", "runs/r", "zoo")
        assert outcome.code == 0, outcome.err
    yield folder


@pytest.fixture
def here(place: Path, workplace: Path) -> Path:
    shutil.copytree(place / "zoo", workplace / "zoo")
    return workplace


def accuracies(folder: Path) -> list[str]:
    with (folder / "episodes.csv").open(newline="") as file:
        return [row["accuracy"] for row in csv.DictReader(file)]


def test_a_pulled_run_gives_the_same_digits(here: Path, place: Path) -> None:
    outcome = metalearn("pull", "zoo", "models/mine")
    assert outcome.code == 0 and "metalearn evaluate run=models/mine" in outcome.out, outcome.err
    line = metalearn("evaluate", "run=models/mine").mistake
    assert f"no folder or archive {here}/mine; correct its path, dataset.root" in line
    outcome = metalearn("evaluate", "run=models/mine", f"dataset.root={place}/mine")
    assert outcome.code == 0, outcome.err
    (again,) = Path("models/mine/evaluations").iterdir()
    assert accuracies(again) == accuracies(place / "runs/r") and len(accuracies(again)) == 6
    before, after = (json.loads((f / "result.json").read_text()) for f in (place / "runs/r", again))
    for name in ("accuracy", "manifest_hash", "weights_sha256", "dataset_hash"):
        assert before[name] == after[name]


def test_nothing_of_this_machine_is_published(here: Path, place: Path) -> None:
    names = {path.name for path in (here / "zoo").iterdir()}
    assert {"weights.safetensors", "config.yaml", "result.json", "manifest.json"} <= names
    assert {"README.md", "SHA256SUMS", "episodes.csv"} <= names
    for path in (here / "zoo").iterdir():
        assert str(place).encode() not in path.read_bytes(), path
    config = yaml.safe_load((here / "zoo/config.yaml").read_text())
    assert config["dataset"]["root"] == "mine" and config["run_dir"] == "runs/r"
    assert config["tracker"]["entity"] is None and config["tracker"]["project"] == "metalearn"
    _, head, text = (here / "zoo/README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    (about,) = card["model-index"][0]["results"]
    result = json.loads((place / "runs/r/result.json").read_text())
    assert about["metrics"][0]["value"] == round(result["accuracy"], 6)
    assert card["library_name"] == "metalearn" and result["weights_sha256"] in text
    assert f"{100 * result['accuracy']:.2f} ± " in text and result["manifest_hash"] in text


def test_what_is_a_path_is_not_told() -> None:
    held = {
        "a": ["/home/me/x.th", "~/x", r"C:\me\w.pth", r"\\host\share\w"], "archive": "/data/c.zip",
        "b": {"root": "/srv/me/birds", "rate": 0.1, "kept": "resnet18", "none": None},
    }  # fmt: skip
    assert shared(held) == {
        "a": ["x.th", "x", "w.pth", "w"], "archive": None,
        "b": {"root": "birds", "rate": 0.1, "kept": "resnet18", "none": None},
    }  # fmt: skip


def change(path: str, text: str = "x") -> None:
    with Path(path).open("a") as file:
        file.write(text)


SPOILT = {
    "weights": (lambda: change("zoo/weights.safetensors"), "weights.safetensors of zoo is not "),
    "config": (lambda: change("zoo/config.yaml", "\n"), "config.yaml of zoo is not what "),
    "gone": (lambda: Path("zoo/result.json").unlink(), "zoo has no result.json; it is no "),
    "no sums": (lambda: Path("zoo/SHA256SUMS").unlink(), "zoo has no SHA256SUMS"),
    "line": (lambda: change("zoo/SHA256SUMS"), "SHA256SUMS has the line 'x', which lists no file"),
    "outside": (
        lambda: change("zoo/SHA256SUMS", f"{'0' * 64}  ../../x\n"), "../../x', which lists no file",
    ),
    "hidden": (lambda: change("zoo/SHA256SUMS", f"{'0' * 64}  .x\n"), ".x', which lists no file"),
    "twice": (
        lambda: change("zoo/SHA256SUMS", f"{'0' * 64}  config.yaml\n"), "which lists no file",
    ),
    "empty": (lambda: Path("zoo/SHA256SUMS").write_text(""), "SHA256SUMS lists no config.yaml"),
    "bytes": (lambda: Path("zoo/SHA256SUMS").write_bytes(b"\xff"), "SHA256SUMS is no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_was_changed_is_refused_and_nothing_is_written(case: str, here: Path) -> None:
    spoil, line = SPOILT[case]
    spoil()
    assert line in metalearn("pull", "zoo", "models/mine").mistake
    assert not Path("models").exists() or not list(Path("models").iterdir())


def test_weights_of_another_run_are_refused(here: Path) -> None:
    """All hashes are right, and the result is of other weights."""
    result = json.loads(Path("zoo/result.json").read_text())
    Path("zoo/result.json").write_text(json.dumps(result | {"weights_sha256": "0" * 64}))
    lines = [
        line for line in Path("zoo/SHA256SUMS").read_text().splitlines() if "result" not in line
    ]
    import hashlib

    digest = hashlib.sha256(Path("zoo/result.json").read_bytes()).hexdigest()
    Path("zoo/SHA256SUMS").write_text("\n".join([*lines, f"{digest}  result.json"]) + "\n")
    assert "result.json is of other weights" in metalearn("pull", "zoo", "mine").mistake


class Hub(http.server.SimpleHTTPRequestHandler):
    """A folder as a server, and as much of the hub as a commit of small files and their download
    take: kept under `<folder>/<user>/<name>/`."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, held: object, code: int = 200) -> None:
        data = json.dumps(held).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/resolve/" not in self.path:
            if self.path.startswith("/api/"):
                return self.answer({"id": "me/run", "sha": "c" * 40, "siblings": []})
            return super().do_GET() if self.command == "GET" else super().do_HEAD()
        repository, _, name = self.path.partition("?")[0].partition("/resolve/main/")
        path = Path(self.directory) / repository.strip("/") / name
        if not path.is_file():
            return self.answer({}, 404)
        data = path.read_bytes()
        self.send_response(200)
        for header, value in (
            ("X-Repo-Commit", "c" * 40), ("ETag", f'"{len(data)}{name}"'),
            ("Content-Length", str(len(data))),
        ):  # fmt: skip
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_POST(self) -> None:
        import base64

        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length) if length else self.chunks()
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            return self.answer({"url": self.commit().partition("/commit")[0], "id": "me/run"})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(text)["files"]]  # fmt: skip
            return self.answer({"files": files})
        if "/commit/" not in self.path:  # the card, which it looks at before
            return self.answer({"errors": [], "warnings": []})
        for line in text.splitlines():
            held = json.loads(line)
            if held["key"] == "file":
                target = Path(self.directory) / "me/run" / held["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(held["value"]["content"]))
        return self.answer({"commitUrl": self.commit(), "commitOid": "c" * 40})

    def commit(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/me/run/commit/{'c' * 40}"

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found


@pytest.fixture
def server(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    made = functools.partial(Hub, directory=str(here))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_from_a_server(server: str) -> None:
    assert metalearn("pull", f"{server}/zoo/", "a").code == 0
    assert accuracies(Path("a")) == accuracies(Path("zoo"))
    change("zoo/weights.safetensors")
    line = metalearn("pull", f"{server}/zoo", "b").mistake
    assert "cannot download weights.safetensors" in line and "wrong sha256" in line
    line = metalearn("pull", f"{server}/nothing", "b").mistake
    assert "cannot download SHA256SUMS" in line and "HTTP 404" in line
    assert not Path("b").exists()


def test_to_the_hub_and_back(
    server: str, place: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = import_module("huggingface_hub.constants")  # keep the address of their import
    addresses = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", addresses)
    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    run, root = str(place / "runs/r"), f"dataset.root={place}/mine"
    line = metalearn("publish", run, "hub=me/run", root).mistake
    assert f"{server} did not take me/run (" in line and "401" in line and "HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    outcome = metalearn("publish", run, "hub=me/run", root)
    assert outcome.code == 0 and f"on the hub: {server}/me/run/commit/ccc" in outcome.out, (
        outcome.err
    )
    assert metalearn("pull", "me/run", "back").code == 0
    assert Path("back/SHA256SUMS").read_text() == Path("zoo/SHA256SUMS").read_text()
    line = metalearn("pull", "me/other", "b").mistake
    assert f"{server} does not give SHA256SUMS of me/other (" in line
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    line = metalearn("pull", "me/run@main", "b").mistake  # the hub's own me/run lies here
    assert "http://127.0.0.1:1 does not answer (" in line
    assert metalearn("publish", run, "hub=me/run", root).mistake == line


MISTAKES = {
    "nothing": (["publish"], "publish needs a run and a folder, or the hub"),
    "no place": (["publish", "runs/r"], "publish needs a run and a folder, or the hub"),
    "no run": (["publish", "gone", "b"], "gone is not a run folder (no config.yaml)"),
    "full": (["publish", "runs/r", "zoo"], "zoo is there and is not empty; choose another folder"),
    "hub": (["publish", "runs/r", "hub=me"], "hub=me must be <user>/<name>"),
    "option": (["publish", "runs/r", "b", "hubb=me/r"], "no option hubb (did you mean hub?) of"),
    "pull": (["pull", "zoo"], "pull needs a source and a folder"),
    "source": (["pull", "gone", "b"], "gone is no folder, no http(s) address and no <user>/<name>"),
    "target": (["pull", "zoo", "zoo"], "zoo is there and is not empty"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, here: Path) -> None:
    words, line = MISTAKES[case]
    assert line in metalearn(*words).mistake


def test_a_run_that_is_not_whole_is_not_published(
    place: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "runs/r", "r")
    root = f"dataset.root={place}/mine"
    weights = Path("r/weights.safetensors").read_bytes()
    Path("r/weights.safetensors").write_bytes(weights + b"x")
    assert "is not what the run wrote (sha256 " in metalearn("publish", "r", "b", root).mistake
    Path("r/weights.safetensors").unlink()
    assert "r has not finished" in metalearn("publish", "r", "b", root).mistake
    Path("r/weights.safetensors").write_bytes(weights)
    monkeypatch.setenv("HOME", str(here / "me"))  # a name that still tells it
    result = json.loads(Path("r/result.json").read_text())
    Path("r/result.json").write_text(json.dumps(result | {"repeat": f"x={here}/me/x"}))
    assert (
        f"result.json would tell {here}/me to others"
        in metalearn("publish", "r", "b", root).mistake
    )
    assert sorted(p.name for p in here.iterdir() if "b" in p.name) == []
