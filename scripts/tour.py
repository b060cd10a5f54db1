"""The size of the rooms: files and lines of each package, the longest file, the median.

python -m scripts.tour [folder]
"""

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lines(path: Path) -> int:
    """Of one file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def rooms(package: Path) -> dict[str, list[Path]]:
    """By the name of an entry at the top of `package`, its Python files."""
    entries = sorted(p for p in package.iterdir() if p.name != "__pycache__")
    found = {p.name: sorted(p.rglob("*.py")) if p.is_dir() else [p] for p in entries}
    return {name: files for name, files in found.items() if files}


def tour(package: Path) -> str:
    """The table, a line an entry, and what all files come to."""
    found = rooms(package)
    width = max(map(len, found))
    rows = [f"{'entry':{width}}  files  lines  longest file"]
    for name, files in found.items():
        longest = max(files, key=lines)
        rows.append(
            f"{name:{width}}  {len(files):5}  {sum(map(lines, files)):5}  "
            f"{longest.relative_to(package)} ({lines(longest)})"
        )
    every = [file for files in found.values() for file in files]
    loose = sum(name.endswith(".py") for name in found)
    longest = max(every, key=lines)
    rows.append(
        f"{len(found)} entries, {loose} of them modules; {len(every)} files, "
        f"{sum(map(lines, every))} lines; median file {statistics.median(map(lines, every)):g}, "
        f"longest {longest.relative_to(package)} ({lines(longest)})"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    print(tour(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "metalearn"))
