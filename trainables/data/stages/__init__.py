"""The stages of prepared data: one file for each."""
