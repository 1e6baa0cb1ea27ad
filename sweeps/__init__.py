"""How trials are proposed, placed, recorded and compared."""
