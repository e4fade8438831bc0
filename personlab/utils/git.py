"""Git, as the command that it is."""

import shlex
import subprocess
from pathlib import Path

from personlab.errors import UserError


def git(folder: Path, *arguments: str, stdin: str | None = None) -> str:
    """What `git <arguments>` prints when run in a folder.

    Raises:
        UserError: it failed; with Git's own words.
    """
    done = subprocess.run(("git", *arguments), cwd=folder, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip() or "there is no such thing"
        raise UserError(f"{folder}: 'git {shlex.join(arguments)}': {reason}")
    return done.stdout.strip()
