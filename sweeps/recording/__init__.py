"""What trials report, as tables, TensorBoard events and lines on the terminal."""
