"""The ``cowest`` command: one file a command or family, and what it prints."""
