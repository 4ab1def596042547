"""Data: embedded files, random-access pipelines of batches, prefetch to the device.

Every split is a `grain.MapDataset` of batches: `dataset[position]` is a pure function
of the position (and of the seed it was built with), so a run resumes exactly from one
integer. Batches are dicts of NumPy arrays that share their first axis.
"""
