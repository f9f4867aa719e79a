"""The one error a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a flag, a file, a weight, a row.

    The message is one line that names what is wrong, where, and the mend. Commands print it to
    standard error and exit with status 2; nothing else is written.
    """
