"""Simulated degradations: the second-order degradation of super-resolution, and print-to-camera."""
