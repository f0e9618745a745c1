"""Typed config, artifacts, errors that teach, console, durations and hardware facts."""
