"""The one training loop, its launchers, checkpoints, validation and untrained reference methods."""
