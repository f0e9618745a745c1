"""How near the planner's predictions come: to the allocator's own count of steps that run here (grid.py), and to what others published of theirs (published.py)."""
