"""`python -m lmprune` is `lmprune`."""

from .commands import interrupts


def main() -> None:
    interrupts.end_at_once()
    from .commands.cli import main as command

    command()


if __name__ == "__main__":
    main()
