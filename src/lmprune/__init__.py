"""lmprune: prune the feed-forward neurons of generative language models."""
