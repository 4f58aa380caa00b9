"""Errors that a user can mend."""


class UserError(Exception):
    """A mistake to report in one line, without a traceback."""
