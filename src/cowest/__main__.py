"""``python -m cowest``."""

from cowest.cli import main

main()
