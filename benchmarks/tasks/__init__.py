"""The proof on real data: one row a task, Luban beside transformers' Trainer from the same weights (``python -m benchmarks.tasks --help``)."""
