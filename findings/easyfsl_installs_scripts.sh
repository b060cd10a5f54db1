#!/usr/bin/env bash
# easyfsl 1.5.0 installs a second package, of the common name `scripts`.
#
# Expected: `pip install easyfsl` adds the package easyfsl alone. Found: its wheel holds a regular
# package `scripts` too, which Python prefers to a project's own folder scripts/ without an
# __init__.py, so that `python -m scripts.mine` no longer finds the project's file.
#
# Output with easyfsl 1.5.0:
#   before: mine ran
#   after: No module named scripts.mine
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
mkdir -p "$work/project/scripts"
echo 'print("mine ran")' > "$work/project/scripts/mine.py"
cd "$work/project"
before=$("$python" -m scripts.mine 2>&1 | sed 's/.*: //')
"$python" -m pip install --quiet --disable-pip-version-check --no-deps easyfsl==1.5.0
after=$("$python" -m scripts.mine 2>&1 | sed 's/.*: //' || true)
echo "before: $before"
echo "after: $after"
[ "$before" = "mine ran" ] && [ "$after" = "No module named scripts.mine" ]
