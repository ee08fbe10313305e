"""From a configuration to a run: the only readers of a configuration."""
