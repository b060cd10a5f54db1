"""Errors that are the user's to mend: one line each, saying what to change."""


class UsageError(ValueError):
    """A combination, name or value that cannot work. The command line prints its one line."""
