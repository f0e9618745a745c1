"""Search over recipes: trials of one recipe with other values, pruned, continued, reported; and the learning-rate range test."""
