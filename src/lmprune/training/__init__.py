"""Training a model on transformers' Trainer, pruned on the way or not."""
