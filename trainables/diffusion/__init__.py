"""Noise schedules, samplers and loss terms. Pure functions of tensors."""
