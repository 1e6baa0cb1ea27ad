"""Where tests find the repository and the expected numbers."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPECTED = Path(__file__).parent / "expected"
"""Numbers that public implementations gave; `README.md` there says how each file was made."""
