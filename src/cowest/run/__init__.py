"""A run on disk: its files, its manifest, what is fresh; progress; processes side by side."""
