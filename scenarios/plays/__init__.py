"""The plays: a TOML file for each scenario, and what finds its figures, by family."""
