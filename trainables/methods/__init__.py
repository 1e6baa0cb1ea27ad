"""The methods: one file for each; `method.py` is their contract."""
