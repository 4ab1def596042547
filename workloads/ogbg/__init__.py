"""Graph classification: which of 128 assays a molecule is active in (ogbg-molpcba)."""
