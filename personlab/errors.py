"""The exception for errors that the user can fix: a bad file, a bad parameter, a full disk.

Its message names the file, row or key, the reason, and what to do. The command line prints it without a
traceback and exits with status 1. Any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can fix; its message says how."""


@contextmanager
def about(place: object) -> Iterator[None]:
    """Put the name of a file in front of the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def first(names: Iterable[str], shown: int = 3) -> str:
    """The first names of a list for a message, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
