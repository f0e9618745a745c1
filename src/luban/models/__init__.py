"""Layers, the decoder, its shapes and counts, and the Hugging Face layout on disk."""
