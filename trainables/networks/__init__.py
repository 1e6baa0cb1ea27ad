"""Network architectures. They know no settings, files or Ray."""
