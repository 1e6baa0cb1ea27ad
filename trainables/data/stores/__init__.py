"""The Arrow stores that hold prepared data."""
