"""Forget scenarios: one per file, `(data, streams, *, ...) -> positions in data.train` of what is to be forgotten."""
