"""From the numbers of a sweep to its answer."""
