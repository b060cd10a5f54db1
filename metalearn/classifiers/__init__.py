"""Few-shot classifiers on features, as values."""
