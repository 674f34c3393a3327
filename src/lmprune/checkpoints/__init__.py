"""Models in and out: where they are, reading, writing, what a config can't say."""
