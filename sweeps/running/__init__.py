"""Search, Ray cluster and preparation of one sweep."""
