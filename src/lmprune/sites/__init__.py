"""What can be removed from a model, and where it is."""
