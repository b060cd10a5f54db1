"""How T tasks run: batching, precision, compilation, and the measurement that chooses."""

from metalearn.engine.engine import Engine, plain_loop

__all__ = ["Engine", "plain_loop"]
