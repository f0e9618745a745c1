"""Recipes, the runner, the run card."""
