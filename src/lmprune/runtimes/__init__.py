"""What other runtimes call each architecture, and how they lay out its tensors: to write files for them, and read."""
