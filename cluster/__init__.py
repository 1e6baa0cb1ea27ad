"""How to get machines: one file for each way."""
