"""``python -m spearhead``."""

from spearhead.cli import main

main()
