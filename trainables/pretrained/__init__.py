"""Weights that a trial starts from: found, identified, loaded."""
