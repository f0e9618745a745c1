"""Training and evaluating tokenizers, chat templates, and which tokens of a chat are trained on."""
