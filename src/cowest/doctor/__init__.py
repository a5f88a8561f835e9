"""``cowest doctor``: whether this machine and a recipe's endpoints are fit to work with, without torch and without paying."""
