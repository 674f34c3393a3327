"""How many units each layer keeps."""
