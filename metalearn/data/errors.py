"""The one error that a user of the data layer meets."""


class DataError(Exception):
    """Data that is missing, damaged or asked for wrongly: one line that says what to change."""
