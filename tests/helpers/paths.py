"""Where tests find the repository and the expected numbers."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "tests" / "expected"
"""Numbers that public implementations gave; `README.md` there says how each file was made."""
