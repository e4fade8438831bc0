"""The one exception people are meant to see.

Anything a user can put right (a bad file, a bad parameter, a full disk) is raised as `UserError` with a
message that names the file, the row and the reason, and says what to do next. The command line prints it
without a traceback and exits with status 1. Everything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Something the user can put right; `str(error)` says what and how."""
