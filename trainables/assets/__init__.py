"""The weights that ship, and the code that trains them again."""
