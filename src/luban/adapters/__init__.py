"""Adapters: a few new weights on a model that stays as it is. See docs/adapters.md."""
