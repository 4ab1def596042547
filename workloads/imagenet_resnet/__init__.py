"""Image classification with a residual network: ImageNet, Fashion-MNIST at mini."""
