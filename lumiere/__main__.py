"""``python -m lumiere`` is the command line."""

from lumiere.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
