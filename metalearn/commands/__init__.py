"""From a composed configuration to a finished run. Hydra is known here and in cli.py alone."""
