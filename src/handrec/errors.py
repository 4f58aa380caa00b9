"""The one exception that a user sees without a traceback."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line."""
