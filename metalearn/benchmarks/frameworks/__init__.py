"""The engines that are compared, each as its users write it, and how to name them."""

from metalearn.benchmarks.frameworks.base import (
    DEFAULT,
    FRAMEWORKS,
    Framework,
    NotInstalled,
    Runner,
    load,
    parse,
)

__all__ = ["DEFAULT", "FRAMEWORKS", "Framework", "NotInstalled", "Runner", "load", "parse"]
