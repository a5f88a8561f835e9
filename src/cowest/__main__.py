"""``python -m cowest``."""

from cowest.cli.main import main

main()
