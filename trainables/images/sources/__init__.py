"""Images of a folder, a list, a table or a bucket, found, looked into, split and decoded when asked for."""
