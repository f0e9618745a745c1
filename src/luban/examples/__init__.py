"""Readers of labelled data: recognised, shown and checked before anything is trained on it."""
