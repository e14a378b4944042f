"""Data sets: one loader per file, each returning `Data`."""
