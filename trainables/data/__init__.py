"""Prepared data: everything that does not depend on the hyperparameters of a trial."""
