"""`python -m lmprune` is `lmprune`."""

from .cli import main

main()
