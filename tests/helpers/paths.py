"""The paths of the repository and of the expected numbers."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "tests" / "expected"
"""Numbers from public implementations; `README.md` there describes the origin of each file."""
