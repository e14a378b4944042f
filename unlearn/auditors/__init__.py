"""Auditors: one per file, `(subject, lab, *, ...) -> {metric: value}`, each declaring its `METRICS`."""
