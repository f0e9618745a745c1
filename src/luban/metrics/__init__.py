"""Every score, with its signature and its interval."""
