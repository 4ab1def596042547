"""Image classification with a vision transformer on ImageNet."""
