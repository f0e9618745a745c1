"""Token shards on disk, packing, mixtures, and the loaders whose order is a function of seed and position."""
