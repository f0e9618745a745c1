"""Key-value cache, sampling, batched decoding and scoring."""
