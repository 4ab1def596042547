"""Structural similarity of images (Wang et al. 2004, doi:10.1109/TIP.2003.819861)."""

import jax
import jax.numpy as jnp

WINDOW = 7  # pixels on a side, as in Zbontar et al. 2018, arXiv:1811.08839
K1, K2 = 0.01, 0.03


def ssim(
    images_BHW: jax.Array, references_BHW: jax.Array, range_B: jax.Array
) -> jax.Array:
    """Returns the mean similarity of each pair of images, from -1 to 1.

    Windows are uniform and lie within the image; covariances are those of a sample
    (divided by pixels - 1). Equation 13 of the paper.

    Args:
      images_BHW: (B, H, W).
      references_BHW: (B, H, W).
      range_B: (B,), the range of values that the images can have.

    Returns:
      (B,) float32.
    """
    pixels = WINDOW**2
    unbiased = pixels / (pixels - 1)
    c1 = jnp.square(K1 * range_B)[:, None, None]
    c2 = jnp.square(K2 * range_B)[:, None, None]
    mean_x, mean_y = _window_mean(images_BHW), _window_mean(references_BHW)
    # Products of deviations lose fewer digits than deviations of products.
    centre = references_BHW.mean((1, 2), keepdims=True)
    x, y = images_BHW - centre, references_BHW - centre
    shifted_x, shifted_y = mean_x - centre, mean_y - centre
    variance_x = unbiased * (_window_mean(x * x) - shifted_x**2)
    variance_y = unbiased * (_window_mean(y * y) - shifted_y**2)
    covariance = unbiased * (_window_mean(x * y) - shifted_x * shifted_y)
    similarity_BHW = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return jnp.clip(similarity_BHW.mean((1, 2)), -1.0, 1.0)


def _window_mean(x_BHW: jax.Array) -> jax.Array:
    """Means over all windows within the image: (B, H - 6, W - 6)."""
    for axis in (1, 2):
        window = [1, 1, 1]
        window[axis] = WINDOW
        x_BHW = jax.lax.reduce_window(
            x_BHW, 0.0, jax.lax.add, tuple(window), (1, 1, 1), "VALID"
        )
    return x_BHW / WINDOW**2
