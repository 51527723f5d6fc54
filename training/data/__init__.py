"""Data sets as packed stores, class splits and the episode sampler."""
