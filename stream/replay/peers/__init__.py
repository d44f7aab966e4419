"""Recommenders of other makers as arms of a replay: each a process in an environment of its own."""
