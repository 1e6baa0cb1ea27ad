"""The project's name and version, as pip, `--version` and pyproject.toml have them.

Not from the metadata of the installed package: a checkout that runs without being installed has none.
"""

PROJECT = "restoration-sweeps"
VERSION = "0.1.0"
