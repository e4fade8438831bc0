"""The exception for errors that the user can fix: a bad file, a bad parameter, a full disk.

Its message names the file, row or key, the reason, and what to do. The command line prints it without a
traceback and exits with status 1. Any other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """An error that the user can fix; its message says how."""
