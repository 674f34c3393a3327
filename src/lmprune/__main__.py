"""`python -m lmprune` is `lmprune`."""

from .commands.cli import main

main()
