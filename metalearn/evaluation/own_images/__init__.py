"""A trained network on a user's own images: calibrated answers, an honest estimate, a file."""
