"""The recipe: its sections, how it is read, what is wrong with it, and the recipes that ship."""
