"""One file a side; each runs in an environment of its own and imports only what is there."""
