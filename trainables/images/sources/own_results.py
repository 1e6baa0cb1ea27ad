"""Results of our own below a source: their pictures are sheets of restored crops, not photographs."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from trainables.common.paths import RUN_SETTINGS

_OF_A_RUN = ("trials/", "report/", "best/", "leaderboard.parquet")  # a settings.yaml alone may be another program's
_STORE_OR_SHEET = re.compile(
    r"(?:^|/)(?:(?:pairs|latents|targets|restored)-(?:train|validation|test)-[0-9a-f]{12}(?:/|\.png$)"
    r"|(?:catalogue|rejected)-[0-9a-f]{16}\.parquet$)"
)


def left_out(files: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The files that runs and preparations of data wrote.

    Args:
        files: sorted names relative to the source: images, tables, and those that end with `RUN_SETTINGS`. A run in the
            source's own folder does not count, because the user asked for that folder.

    Returns:
        Whether each file is one of them, or a `RUN_SETTINGS`, bool (N,); and the folders of the runs.
    """
    ours = np.array([name.lower().endswith(RUN_SETTINGS) or bool(_STORE_OR_SHEET.search(name)) for name in files], bool)
    runs = []
    for name in files:
        if name.endswith(f"/{RUN_SETTINGS}"):
            run = name.removesuffix(RUN_SETTINGS)
            below = slice(bisect_left(files, run), bisect_left(files, f"{run}{chr(sys.maxunicode)}"))
            if any(file[len(run) :].startswith(_OF_A_RUN) for file in files[below]):
                runs.append(run)
                ours[below] = True
    return ours, runs
