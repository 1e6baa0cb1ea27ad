"""Images from outside: sources, degradations, pairs."""
