"""``python -m flextensor``; see `flextensor.cli`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from flextensor.cli import run

    run()


if __name__ == "__main__":
    main()
