"""Training through TRL and PEFT: SFT, preference tuning, merging."""
