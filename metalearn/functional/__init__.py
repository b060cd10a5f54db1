"""Networks as pure functions that can be differentiated twice, whatever layers they are made of."""

from metalearn.functional.module import PureModule, pure

__all__ = ["PureModule", "pure"]
