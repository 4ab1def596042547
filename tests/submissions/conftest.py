"""Makes the helpers of the tests importable, here and next door."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "algoperf")]
