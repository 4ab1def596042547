"""Rebuilds the embedded recordings of spoken words with a speech synthesiser.

    python -m workloads.common.speech.make_spoken_words

needs eSpeak NG: the Debian package `espeak-ng`, of which version 1.51+dfsg-10+deb12u2
was used. The same version gives the same bytes. The program is under the GPL version 3
or later; what it speaks is not covered by it.
"""

import argparse
import io
import subprocess
import wave
from collections.abc import Sequence

import numpy as np
from scipy.signal import resample_poly

from algoperf.data.embedded import read_about, save_embedded
from workloads.common.speech import spoken_words

SEED = 0
# Manners of speaking that eSpeak NG knows, without robots and whisperers.
VARIANTS = (
    *("adam", "Alex", "Alicia", "Andrea", "Andy", "anika", "Annie", "antonio"),
    *("AnxiousAndy", "aunty", "belinda", "benjamin", "boris", "caleb", "croak"),
    *("david", "Demonic", "Denis", "Diogo", "ed", "edward", "edward2", "f1", "f2"),
    *("f3", "f4", "f5", "Gene", "Gene2", "grandma", "grandpa", "gustave", "Henrique"),
    *("Hugo", "iven", "iven2", "iven3", "iven4", "Jacky", "john", "kaukovalta"),
    *("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "Lee", "linda"),
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "Marco", "Mario"),
    *("max", "michel", "Michael", "miguel", "Mike", "Mr serious", "Nguyen"),
    *("norbert", "pablo", "paul", "pedro", "quincy", "RicishayMax", "RicishayMax2"),
    *("RicishayMax3", "rob", "robert", "sandro", "shelby", "steph", "steph2"),
    *("steph3", "Storm", "travis", "Tweaky", "victor", "zac"),
)
ACCENTS = (
    *("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc"),
    *("en-gb-x-gbclan", "en-029", "en-gb-x-gbcwmd"),
)
# Of so many groups of variants, one is validation and one is test.
EVERY = 6
TRAIN_TAKES = 2  # voices of each variant of training, with accents of their own
PITCHES = (35, 65)
WORDS_PER_MINUTE = (170, 230)
SILENCE = 0.02  # of the loudest sample: quieter ends of a recording are cut off
PEAK = 0.4


def group(variant: str) -> str:
    """Returns a variant's name without its number: those of a group sound alike."""
    return variant.rstrip("0123456789").lower()


def voices() -> list[tuple[str, int]]:
    """Returns the variant and the split of each voice.

    A split is a place in `spoken_words.SPLITS`.
    """
    groups = sorted({group(variant) for variant in VARIANTS})
    roles = {name: place % EVERY for place, name in enumerate(groups)}
    splits = {
        variant: {EVERY // 2: 1, EVERY - 1: 2}.get(roles[group(variant)], 0)
        for variant in VARIANTS
    }
    found = list(splits.items())
    for _ in range(1, TRAIN_TAKES):
        found += [(variant, split) for variant, split in splits.items() if split == 0]
    return found


def speak(program: str, voice: Sequence[str], word: str) -> tuple[np.ndarray, int]:
    """Returns samples of 16 bits, as floats, and how many there are in a second."""
    command = [program, *voice, "--stdout", word]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
        # The header gives no length: the program writes before it knows it.
        data = file.readframes(2**24)
    return np.frombuffer(data, "<i2").astype(np.float64), rate


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Cuts off silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > SILENCE * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def record(program: str, voice: Sequence[str]) -> list[np.ndarray]:
    """Returns the mu-law codes of all words; the loudest sample of them is PEAK."""
    words = []
    for word in spoken_words.WORDS:
        samples, rate = speak(program, voice, word)
        words.append(trimmed(resample_poly(samples, spoken_words.SAMPLE_RATE, rate)))
    loudest = max(np.abs(word).max() for word in words)
    return [spoken_words.compress(PEAK / loudest * word) for word in words]


def build(program: str) -> dict[str, np.ndarray]:
    """Returns 'codes' one after another, 'lengths' by voice and word, 'splits'."""
    generator = np.random.default_rng(SEED)
    codes, lengths, splits = [], [], []
    for place, (variant, split) in enumerate(voices()):
        pitch = generator.integers(*PITCHES)
        speed = generator.integers(*WORDS_PER_MINUTE)
        name = f"{ACCENTS[place % len(ACCENTS)]}+{variant}"
        words = record(program, ["-v", name, "-p", str(pitch), "-s", str(speed)])
        codes += words
        lengths.append([len(word) for word in words])
        splits.append(split)
    return {
        "codes": np.concatenate(codes),
        "lengths": np.array(lengths, np.uint16),
        "splits": np.array(splits, np.uint8),
    }


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default="espeak-ng")
    arrays = build(parser.parse_args().program)
    counts = np.bincount(arrays["splits"], minlength=len(spoken_words.SPLITS))
    sizes = dict(zip(spoken_words.SPLITS, counts.tolist(), strict=True))
    about = {
        "name": "Spoken words",
        "source": "generated by eSpeak NG 1.51 "
        "(Debian package espeak-ng 1.51+dfsg-10+deb12u2)",
        "licence": "Apache-2.0, as this package: audio that a program under the GPL "
        "writes is no work based on the program",
        "rebuild": "python -m workloads.common.speech.make_spoken_words",
        "split": f"by voice: of {EVERY} groups of like voices one is validation and "
        "one is test; and by text, see spoken_words.split_of",
        "format": "mu-law codes of 8 bits at 8 kHz",
        "words": list(spoken_words.WORDS),
        "voices": sizes,
    }
    save_embedded(spoken_words.EMBEDDED, arrays, about)
    written = read_about(spoken_words.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}; voices {sizes}")


if __name__ == "__main__":
    main()
