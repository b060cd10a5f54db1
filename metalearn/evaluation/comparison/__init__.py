"""`metalearn compare`: methods on one backbone and the same episodes."""
