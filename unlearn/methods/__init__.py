"""Unlearning methods: one per file, `(model, request, streams, *, ...) -> nn.Module`, each declaring its `NEEDS`."""
