"""How one trial learns: methods, the training loop, data, weights, metrics."""
