"""From overrides to a configuration, and from there to objects, with every mistake one line.

`config` composes, with `schemas` (the types), `searchpath` (where groups are found), `mistakes`
(what a line says) and `trust`. `hydra_runs` and `search` run what `-m` asks for. `arguments` makes
one object of its node; `episodes`, `network` and `meta_training` make a run of many, and what they
ask first stands beside them.
"""
