"""The embedded default: a small world, a model of a million parameters that lives in it, and its data."""
