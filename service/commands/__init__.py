"""Bodies of the commands that need no training code: serve, classify, models."""
