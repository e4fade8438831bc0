"""Git commands."""

import shlex
import subprocess
from pathlib import Path

from personlab.errors import UserError


def git(folder: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run `git <arguments>` in a folder and return what it prints, without blanks at the ends.

    Raises:
        UserError: it failed; the message is Git's.
    """
    done = subprocess.run(
        ("git", *arguments),
        cwd=folder,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",  # names of files may be any bytes
    )
    if done.returncode != 0:
        reason = done.stderr.strip() or "there is no such thing"
        raise UserError(f"{folder}: 'git {shlex.join(arguments)}': {reason}")
    return done.stdout.strip()
