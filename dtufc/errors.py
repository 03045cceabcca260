"""The error that says what a user can mend.

Scripts end with one line for a :class:`UserError` or an ``OSError`` (a missing file, a full disk); every
other exception is a fault of the code and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input, an impossible value or files that do not fit together; the text names what."""
