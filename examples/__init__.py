"""Scripts that show something, each by itself: `python -m examples.<name> --help`."""
