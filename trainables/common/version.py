"""The project's name and version, for pip, `--version` and pyproject.toml.

Not read from the metadata of the installed package, because a checkout that is not installed has none.
"""

PROJECT = "restoration-sweeps"
VERSION = "0.2.0.dev0"
