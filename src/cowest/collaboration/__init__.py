"""The method: draft, refine, feedback, preference. No disk and no configuration; read in that order."""
