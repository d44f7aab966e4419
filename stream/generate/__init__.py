"""Synthetic streams whose true probabilities are known: for runs of any size, with the best that can be reached."""
