"""What is learned: one short file an objective."""
