"""Training algorithms, one folder each: `submission.py`, `tuning_search_space.json`."""
