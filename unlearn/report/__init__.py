"""Reports: pure functions of row files."""
