"""Scores that rank networks for a data set by a look at their features, without any training.

Each takes features `[n, D]` or source probabilities `[n, Z]` of n examples and their labels `[n]`,
in float64, and is higher for the network that promises more. No value means anything beside one of
another data set, or of other examples.
"""
