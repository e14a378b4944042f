"""Machine unlearning for image classifiers: train, retrain, unlearn, audit, and keep every result."""

__version__ = "0.1.0"
