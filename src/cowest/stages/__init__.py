"""The stages: thin functions that read files, call the method, and write files. ``base.py`` says what a stage is."""
