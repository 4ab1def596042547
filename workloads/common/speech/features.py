"""From waveforms to log-mel features, and SpecAugment, inside of the models.

Dimension key: B batch, S samples, T frames, W samples of a window, F frequencies of the
Fourier transform, M mel bins, K masks.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

FULL_SCALE = 2**15  # of samples of 16 bits
PRE_EMPHASIS = 0.97
FLOOR = 1e-5  # of the energy in a bin


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Log energies in triangular bands on the mel scale, as in HTK and Lingvo.

    Attributes:
      mean: of each of the M bins, subtracted.
      stddev: of each bin, divided by.
      lower_hertz: where the lowest band begins.
      upper_hertz: where the highest band ends.
      sample_rate: samples per second.
    """

    mean: tuple[float, ...]
    stddev: tuple[float, ...]
    lower_hertz: float = 125.0
    upper_hertz: float = 7600.0
    sample_rate: int = 16_000

    @property
    def window(self) -> int:
        """Samples of a window: 25 ms."""
        return self.sample_rate // 40

    @property
    def step(self) -> int:
        """Samples from one window to the next: 10 ms."""
        return self.sample_rate // 100

    def num_frames(self, num_samples: int) -> int:
        """Returns the frames of so many samples."""
        return (num_samples - self.window - 1) // self.step + 1

    def bands(self, num_frequencies: int) -> np.ndarray:
        """Returns the weight of each frequency in each band, (F, M) float32.

        Triangles on the mel scale: band m rises from edge m to m + 1 and falls to
        m + 2. The frequency 0 is in none.
        """
        edges = np.linspace(
            _mel(self.lower_hertz), _mel(self.upper_hertz), len(self.mean) + 2
        )
        mels = _mel(np.linspace(0, self.sample_rate / 2, num_frequencies))[:, None]
        rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
        weights = np.maximum(0, np.minimum(rising, falling))
        weights[0] = 0
        return weights.astype(np.float32)

    def __call__(
        self, audio_BS: jax.Array, paddings_BS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns features (B, T, M) and the paddings (B, T) of the frames, float32.

        Args:
          audio_BS: samples, integers of 16 bits or floats of that range.
          paddings_BS: 1 on padding, which stands at the end, else 0.
        """
        paddings_BS = paddings_BS.astype(jnp.float32)
        audio_BS = audio_BS.astype(jnp.float32) * (1 - paddings_BS) / FULL_SCALE
        num_frames = self.num_frames(audio_BS.shape[1])
        starts = np.arange(num_frames) * self.step
        # One sample more, for the difference.
        frames_BTW = audio_BS[:, starts[:, None] + np.arange(self.window + 1)]
        emphasised_BTW = jnp.concatenate(
            [
                frames_BTW[..., :1] * (1 - PRE_EMPHASIS),
                frames_BTW[..., 1:-1] - PRE_EMPHASIS * frames_BTW[..., :-2],
            ],
            axis=-1,
        )
        hann_W = np.hanning(self.window + 1)[:-1].astype(np.float32)  # periodic
        size = 2 ** int(np.ceil(np.log2(self.window + 1)))
        spectrum_BTF = jnp.fft.rfft(emphasised_BTW * hann_W, size)
        energy_BTF = jnp.square(jnp.abs(spectrum_BTF))
        energy_BTM = energy_BTF @ self.bands(size // 2 + 1)
        features_BTM = jnp.log(jnp.maximum(energy_BTM, FLOOR))
        normalised_BTM = (features_BTM - np.array(self.mean, np.float32)) / np.array(
            self.stddev, np.float32
        )
        # A frame is padding if all its samples are, that is, if the first one is.
        return normalised_BTM, paddings_BS[:, starts]


def spec_augment(
    rng: jax.Array,
    features_BTM: jax.Array,
    paddings_BT: jax.Array,
    frequency_masks: int,
    time_masks: int,
    max_bins: int = 27,
    max_time_share: float = 0.05,
) -> jax.Array:
    """Puts 0 where random bands and random stretches of time are masked.

    Park et al. 2019, arXiv:1904.08779, with stretches bounded by a share of the
    utterance (Park et al. 2020, arXiv:1912.05533).

    Args:
      rng: a key.
      features_BTM: of mean 0.
      paddings_BT: 1 on padding, else 0.
      frequency_masks: how many bands.
      time_masks: how many stretches.
      max_bins: a band has fewer bins than that.
      max_time_share: of an utterance's frames that a stretch has at most.
    """
    batch_size, num_frames, num_bins = features_BTM.shape
    time_rng, frequency_rng = jax.random.split(rng)
    lengths_B = (1 - paddings_BT).sum(axis=1).astype(jnp.int32)
    time_BT = _mask(
        time_rng, lengths_B, lengths_B * max_time_share, time_masks, num_frames
    )
    bins_B = jnp.full(batch_size, num_bins)
    longest_B = jnp.full(batch_size, min(max_bins, num_bins))
    frequency_BM = _mask(frequency_rng, bins_B, longest_B, frequency_masks, num_bins)
    return features_BTM * (1 - time_BT)[:, :, None] * (1 - frequency_BM)[:, None, :]


def _mask(
    rng: jax.Array, range_B: jax.Array, longest_B: jax.Array, count: int, size: int
) -> jax.Array:
    """Returns (B, size), 1 in `count` intervals shorter than `longest` within range."""
    length_rng, start_rng = jax.random.split(rng)
    shape = (len(range_B), count)
    share_BK = jax.random.uniform(length_rng, shape)
    length_BK = (share_BK * longest_B[:, None]).astype(jnp.int32)
    room_BK = range_B[:, None] - length_BK + 1
    start_BK = (jax.random.uniform(start_rng, shape) * room_BK).astype(jnp.int32)
    place = jnp.arange(size)
    inside = (place >= start_BK[..., None]) & (
        place < (start_BK + length_BK)[..., None]
    )
    return inside.any(axis=1).astype(jnp.float32)
