"""How T tasks run: batching, precision, compilation, and the measurement that chooses."""
