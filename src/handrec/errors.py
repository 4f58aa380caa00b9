"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line."""
