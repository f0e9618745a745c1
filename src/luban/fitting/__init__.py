"""What is fitted rather than looped: n-gram models, word vectors, linear models over TF-IDF."""
