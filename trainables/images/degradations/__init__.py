"""What degrades a photograph: the second-order degradation of super-resolution, and printing and photographing."""
