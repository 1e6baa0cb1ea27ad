"""Images from a folder, a list, a Parquet table or a bucket: finding, checking, splitting and decoding them."""
