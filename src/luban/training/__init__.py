"""The loop, optimizers, schedules, precision, checkpoints, guards and tracking."""
