"""Runs a sweep for a question of `search_spaces/`: `python run_sweep.py --space sinsr_loss_ratios`."""

from __future__ import annotations

import sys

from trainables.common.command import starting

if __name__ == "__main__":
    with starting():
        from sweeps.command_line import main
    sys.exit(main())
