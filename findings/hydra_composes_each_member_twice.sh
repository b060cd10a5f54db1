#!/usr/bin/env bash
# Hydra's -m composes the configuration of every member twice, all of them before the first runs.
#
# Expected: a sweep of n members composes its own configuration and one a member, about n in all, each
#    when its turn comes; a launcher's start does not depend on n.
# Found: 2 n + 2. The sweeper first composes all members in series, to see that they are legal, and
#    throws the results away; the launcher composes each again. With a large tree of config groups,
#    where a composition takes 0.2 s, each member costs twice that, and half of it is waited for
#    before the first run begins.
#
# Output with hydra-core 1.3.8 (calls of its loader):
#   compositions of a sweep of 3: 8
#   before the first run: 6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check hydra-core==1.3.8
mkdir "$work/conf"
echo "seed: 0" > "$work/conf/config.yaml"
cat > "$work/ask.py" <<'PYTHON'
import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl

real, composed, before = ConfigLoaderImpl.load_configuration, [], []


def noted(loader, config_name, overrides, *rest, **more):
    composed.append(overrides)
    return real(loader, config_name, overrides, *rest, **more)


ConfigLoaderImpl.load_configuration = noted


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(config):
    before.append(len(composed))


run()
print("compositions of a sweep of 3:", len(composed))
print("before the first run:", before[0])
PYTHON
cat > "$work/expected" <<'TEXT'
compositions of a sweep of 3: 8
before the first run: 6
TEXT
(cd "$work" && "$python" ask.py -m seed=0,1,2 | grep -v HYDRA) | tee "$work/found"
diff "$work/expected" "$work/found"
