"""How trials are proposed, placed, recorded and compared.

From Python: `sweeps.run` runs a sweep, `sweeps.open_run` opens the folder of a run, see `sweeps.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.api import FinishedTrial, Run, open_run, run

__all__ = ["FinishedTrial", "Run", "open_run", "run"]


def __getattr__(name: str) -> Any:
    """Imported when they are used: the command line imports this package, and answers `--help` at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sweeps import api

    return getattr(api, name)
