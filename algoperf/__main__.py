"""`python -m algoperf`, the same as the console script."""

from algoperf.cli import run

run()
