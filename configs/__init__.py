"""Experiments as short files: `get_config()` returns a base config with a few values changed."""
