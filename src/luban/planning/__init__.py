"""What fits, how fast, how long: closed forms, and what `auto` becomes."""
