"""The exception for errors that the user can fix: a bad file, a bad parameter, a full disk.

Its message names the file, row or key, the reason, and what to do. The command line prints it without a
traceback and exits with status 1. Any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix; its message says how."""


def first(names: Iterable[str], shown: int = 3) -> str:
    """The first names of a list for a message, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
