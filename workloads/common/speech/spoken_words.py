"""Spoken words in noise, the utterances of the speech families at mini scale.

Twenty words, most of them of Speech Commands (Warden 2018, arXiv:1804.03209), recorded
once by each of many synthetic voices, see `make_spoken_words`: generated speech is not
real speech. An utterance is three to five words by one voice, with pauses and noise
between and beneath them; all of it follows from the split and the utterance's index.
Each voice belongs to one split, and so does each sequence of words. Audio has 8 kHz, as
on the telephone, half the rate of LibriSpeech.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import grain
import numpy as np

from algoperf.data.embedded import load_embedded
from algoperf.data.examples import DataOptions
from workloads.common.speech import batches
from workloads.common.speech.features import LogMel

EMBEDDED = Path(__file__).parent / "embedded" / "spoken_words"
SAMPLE_RATE = 8_000
MAX_SAMPLES = 2 * SAMPLE_RATE
MAX_TOKENS = 32
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
)
CHARACTERS = " " + "".join(sorted(set("".join(WORDS))))
VOCAB_SIZE = 1 + len(CHARACTERS)  # 0 is the blank
SPLITS = ("train", "validation", "test")
NUM_TRAIN = 8_192
NUM_EVAL_TRAIN = 32
NUM_VALIDATION = 224
NUM_TEST = 64

FEWEST_WORDS, MOST_WORDS = 3, 5
PAUSE = (160, 1_200)  # samples before, between and after words: 20 to 150 ms
# Played so much faster, a voice is a higher one (Ko et al. 2015, Interspeech).
SPEED = (0.85, 1.18)
NOISE_DECIBELS = (0.0, 20.0)  # how much louder speech is than noise
GAIN_DECIBELS = (-12.0, 0.0)
NOISE_SAMPLES = 2**18
NOISE_SEED = 1_000
SUBSAMPLED = 4  # frames of features to one of logits

# The mean of all bins over training utterances, and a third of their deviation. What a
# Conformer makes of features at first is small beside the positions that it adds: with
# the whole deviation, it needs a thousand steps to notice them.
LOG_MEL = LogMel(
    mean=(-3.8,) * 24,
    stddev=(0.7,) * 24,
    upper_hertz=3_800.0,
    sample_rate=SAMPLE_RATE,
)


class Characters:
    """The vocabulary: the blank, the space, letters."""

    def encode(self, text: str) -> list[int]:
        """Returns a token for each character."""
        return [1 + CHARACTERS.index(character) for character in text]

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Returns the texts of lists of tokens."""
        return ["".join(CHARACTERS[token - 1] for token in row) for row in rows]


def load_vocabulary(data_dir: Path | None) -> Characters:
    """Returns the vocabulary, which lies in no file."""
    del data_dir
    return Characters()


def expand(codes: np.ndarray) -> np.ndarray:
    """Returns the samples of mu-law codes (int8 as uint8), float32 in -1 to 1."""
    levels = codes.view(np.int8).astype(np.float32) / 127
    return np.sign(levels) * np.expm1(np.abs(levels) * np.log(256.0)) / 255


def compress(samples: np.ndarray) -> np.ndarray:
    """Returns mu-law codes, uint8, of samples in -1 to 1; see `expand`."""
    levels = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256.0)
    return np.rint(levels * 127).astype(np.int8).view(np.uint8)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What an utterance is made of.

    Attributes:
      voice: whose recordings.
      words: what is said, as places in WORDS.
      speed: how much faster than recorded.
      pauses: samples before each word and after the last.
      gain: what speech and noise are multiplied by.
      noise: root mean square of the noise, as a share of that of the speech.
      noise_start: where its noise begins.
    """

    voice: int
    words: tuple[int, ...]
    speed: float
    pauses: tuple[int, ...]
    gain: float
    noise: float
    noise_start: int

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(WORDS[word] for word in self.words)

    @property
    def lengths(self) -> list[int]:
        """The samples of each word."""
        recorded = recordings()[0][self.voice]
        return [round(len(recorded[word]) / self.speed) for word in self.words]

    @property
    def fits(self) -> bool:
        """Whether it is short enough, and long enough for CTC to spell it.

        CTC needs a frame for each character and one between two that are alike; here
        two frames more.
        """
        size, text = sum(self.lengths) + sum(self.pauses), self.text
        alike = sum(a == b for a, b in itertools.pairwise(text))
        frames = LOG_MEL.num_frames(size) // SUBSAMPLED
        return size <= MAX_SAMPLES and len(text) + alike + 2 <= frames


def split_of(text: str) -> str:
    """Returns the split that a transcript belongs to: one in ten is validation."""
    role = zlib.crc32(text.encode()) % 10
    return {8: "validation", 9: "test"}.get(role, "train")


@functools.cache
def recordings() -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Returns the recordings by voice and word, float32, and each voice's split."""
    arrays = load_embedded(EMBEDDED)
    samples, lengths = expand(arrays["codes"]), arrays["lengths"]
    ends = np.cumsum(lengths, dtype=np.int64)
    found = np.split(samples.astype(np.float32), ends[:-1])
    size = len(WORDS)
    by_voice = [found[i : i + size] for i in range(0, len(found), size)]
    return by_voice, arrays["splits"]


@functools.cache
def noise_tape() -> np.ndarray:
    """Returns noise, NOISE_SAMPLES and once more the first ones, float32.

    Its power falls as 1 / frequency from 80 Hz on, and its mean square is 1.
    """
    generator = np.random.default_rng(NOISE_SEED)
    spectrum = np.fft.rfft(generator.standard_normal(NOISE_SAMPLES))
    frequencies = np.fft.rfftfreq(NOISE_SAMPLES, 1 / SAMPLE_RATE)
    tape = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies, 80)))
    tape = np.concatenate([tape, tape[:MAX_SAMPLES]]) / tape.std()
    return tape.astype(np.float32)


def draw(generator: np.random.Generator, voices: np.ndarray) -> Utterance:
    """Draws an utterance by one of `voices`."""
    size = int(generator.integers(FEWEST_WORDS, MOST_WORDS + 1))
    noise, gain = (
        10 ** (generator.uniform(*limits) / 20)
        for limits in ((-NOISE_DECIBELS[1], -NOISE_DECIBELS[0]), GAIN_DECIBELS)
    )
    return Utterance(
        voice=int(generator.choice(voices)),
        words=tuple(generator.integers(len(WORDS), size=size).tolist()),
        speed=float(generator.uniform(*SPEED)),
        pauses=tuple(generator.integers(*PAUSE, size=size + 1).tolist()),
        gain=float(gain),
        noise=float(noise),
        noise_start=int(generator.integers(NOISE_SAMPLES)),
    )


@functools.cache
def utterances(split: str, count: int) -> tuple[Utterance, ...]:
    """Returns the first `count` utterances of 'train', 'validation' or 'test'.

    Drawn until the transcript belongs to the split and the audio fits.
    """
    number = SPLITS.index(split)
    voices = np.flatnonzero(recordings()[1] == number)
    generator = np.random.default_rng(number)
    found: list[Utterance] = []
    while len(found) < count:
        drawn = draw(generator, voices)
        if split_of(drawn.text) == split and drawn.fits:
            found.append(drawn)
    return tuple(found)


def played(recording: np.ndarray, length: int) -> np.ndarray:
    """Returns a recording played so fast that it has `length` samples, float32."""
    places = np.linspace(0, len(recording) - 1, length)
    return np.interp(places, np.arange(len(recording)), recording).astype(np.float32)


def sound(utterance: Utterance) -> np.ndarray:
    """Returns the samples of an utterance, int16."""
    recorded = recordings()[0][utterance.voice]
    parts = []
    for pause, word, length in zip(
        utterance.pauses, utterance.words, utterance.lengths, strict=False
    ):
        parts += [np.zeros(pause, np.float32), played(recorded[word], length)]
    loudness = np.sqrt(np.square(np.concatenate(parts[1::2])).mean())
    speech = np.concatenate([*parts, np.zeros(utterance.pauses[-1], np.float32)])
    noise = noise_tape()[utterance.noise_start :][: len(speech)]
    mixed = utterance.gain * (speech + utterance.noise * loudness * noise)
    return np.rint(np.clip(mixed * 2**15, -(2**15), 2**15 - 1)).astype(np.int16)


class Utterances:
    """The utterances of a split, made when they are asked for."""

    max_samples = MAX_SAMPLES
    max_tokens = MAX_TOKENS

    def __init__(self, split: str, count: int):
        self._utterances = utterances(split, count)
        self._vocabulary = Characters()

    def __len__(self) -> int:
        return len(self._utterances)

    def samples(self, index: int) -> np.ndarray:
        """Returns the samples of an utterance, int16."""
        return sound(self._utterances[index])

    def tokens(self, index: int) -> np.ndarray:
        """Returns the tokens of a transcript, uint16."""
        return np.array(self._vocabulary.encode(self._utterances[index].text), "u2")


def dataset(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    They are described at `batches.batch`, samples (B, 16000), tokens (B, 32).
    """
    name = "train" if split == "eval_train" else split
    sizes = {"train": NUM_TRAIN, "validation": NUM_VALIDATION, "test": NUM_TEST}
    return batches.read(
        Utterances(name, sizes[name]), split, batch_size, seed, options, NUM_EVAL_TRAIN
    )
