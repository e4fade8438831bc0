"""`python -m personlab <command>`."""

from personlab.cli import main

main()
