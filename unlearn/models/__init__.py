"""Models: one per file, `(shape, classes, *, ...) -> nn.Module`, fed with normalised images."""
