"""Checks every method on the GPU of this machine: `python -m trainables.gpu_check`, or `make gpu-check`."""
