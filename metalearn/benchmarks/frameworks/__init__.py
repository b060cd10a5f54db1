"""The engines that are compared, each as its users write it, and how to name them."""

from metalearn.benchmarks.frameworks.base import (
    FRAMEWORKS,
    Framework,
    NotInstalled,
    Runner,
    default,
    load,
    parse,
)

__all__ = ["FRAMEWORKS", "Framework", "NotInstalled", "Runner", "default", "load", "parse"]
