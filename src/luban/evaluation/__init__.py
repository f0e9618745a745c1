"""Loss, perplexity and bits per byte on held-out text, beside n-gram baselines, before and after."""
