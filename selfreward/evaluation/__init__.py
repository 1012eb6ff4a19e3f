"""Measurements on held-out data: pure functions over records."""
