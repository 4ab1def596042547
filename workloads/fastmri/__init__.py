"""Knee images from a quarter of their MRI measurements, with a U-Net (fastMRI)."""
