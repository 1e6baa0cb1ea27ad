"""What every module may import: errors, flags, paths, units."""
