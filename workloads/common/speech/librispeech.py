"""LibriSpeech: utterances as samples, transcripts as subwords.

Panayotov et al. 2015. Utterances of more than 20 s and transcripts of more than 256
characters are left out, as published. Subwords are learned from the transcripts of
train-clean-100. Audio is stored as integers of 16 bits, one utterance after another.
"""

import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from algoperf.data.examples import DataError, DataOptions, OnCorrupt, end
from algoperf.data.mapped import mapped
from algoperf.data.source import DataSource
from algoperf.errors import UserError
from workloads.common import sentencepiece
from workloads.common.speech import batches
from workloads.common.speech.features import LogMel

SAMPLE_RATE = 16_000
MAX_SAMPLES = 320_000
MAX_TOKENS = MAX_CHARACTERS = 256
VOCAB_SIZE = 1024
UNKNOWN, START, END = 0, 1, 2  # the blank is 0, too: no character may be unknown
NUM_TRAIN = 263_840
NUM_EVAL_TRAIN = 5_376
NUM_VALIDATION = 5_348
NUM_TEST = 2_472
VOCABULARY = "vocabulary.model"
VOCABULARY_PART = "train-clean-100"
SPLITS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "validation": ("dev-clean", "dev-other"),
    "test": ("test-clean",),
}
UTTERANCES_AT_ONCE = 1024

# Mean and standard deviation of each bin over the training set, as in the speech
# recognition front end of Lingvo (Shen et al. 2019, arXiv:1902.08295).
# fmt: off
LOG_MEL = LogMel(
    mean=(
        -7.604782, -7.120623, -6.886425, -6.870577, -6.966772, -7.108409,
        -6.952803, -6.783994, -6.619552, -6.487627, -6.412066, -6.394048,
        -6.424487, -6.399371, -6.515827, -6.7138, -6.847688, -6.9885,
        -6.922139, -7.146149, -7.20404, -7.053755, -7.314038, -7.122325,
        -7.302514, -7.121214, -7.242573, -7.173054, -7.097941, -7.088748,
        -6.984991, -6.878773, -6.760275, -6.630095, -6.514577, -6.424506,
        -6.356514, -6.317876, -6.266077, -6.246833, -6.282153, -6.190839,
        -6.248435, -6.147264, -6.092473, -6.0171, -5.92504, -5.853583,
        -5.820911, -5.811893, -5.807837, -5.771463, -5.745373, -5.770566,
        -5.776564, -5.783167, -5.795409, -5.799482, -5.802348, -5.804712,
        -5.816818, -5.88448, -5.972711, -6.044466, -6.128487, -6.225759,
        -6.31575, -6.390612, -6.49286, -6.549846, -6.605432, -6.650838,
        -6.669176, -6.672689, -6.684235, -6.697458, -6.754718, -6.794914,
        -6.863421, -6.941865,
    ),
    stddev=(
        3.435328, 3.596293, 3.701247, 3.736921, 3.75351, 3.693629,
        3.69225, 3.764152, 3.841972, 3.899985, 3.929424, 3.931741,
        3.913959, 3.90316, 3.8692, 3.815508, 3.764497, 3.709911,
        3.696509, 3.600377, 3.549323, 3.546512, 3.450036, 3.471281,
        3.408461, 3.440814, 3.410488, 3.421764, 3.431285, 3.419921,
        3.430581, 3.438267, 3.458037, 3.481799, 3.495871, 3.503679,
        3.504757, 3.498873, 3.493056, 3.482294, 3.45943, 3.461277,
        3.455906, 3.475542, 3.497155, 3.532656, 3.57052, 3.592031,
        3.596907, 3.59135, 3.586593, 3.582681, 3.583774, 3.589579,
        3.581931, 3.583787, 3.586118, 3.588959, 3.592215, 3.593946,
        3.585663, 3.588411, 3.592102, 3.587049, 3.580657, 3.573107,
        3.561753, 3.549807, 3.552737, 3.547537, 3.538785, 3.525618,
        3.503184, 3.492273, 3.487965, 3.472559, 3.455839, 3.435183,
        3.428429, 3.429917,
    ),
)
# fmt: on

INSTRUCTIONS = """
LibriSpeech (licence CC BY 4.0), 60 GB, from https://www.openslr.org/12:
  train-clean-100, train-clean-360, train-other-500, dev-clean, dev-other, test-clean
Unpack the six archives into one folder, and give it as --raw: it then holds
LibriSpeech/train-clean-100/SPEAKER/CHAPTER/*.flac and so on. The prepared set takes
about 110 GB.
"""


class Utterances:
    """The utterances of a split, in flat arrays that are mapped from disk."""

    max_samples = MAX_SAMPLES
    max_tokens = MAX_TOKENS

    def __init__(self, folder: Path, split: str):
        self._audio, self._audio_starts = _flat(folder / f"{split}.audio", np.int16)
        self._tokens, self._token_starts = _flat(folder / f"{split}.tokens", np.uint16)
        if len(self._audio_starts) != len(self._token_starts):
            raise DataError(
                f"{folder}/{split}: {len(self._audio_starts) - 1:,} utterances with "
                f"{len(self._token_starts) - 1:,} transcripts"
            )

    def __len__(self) -> int:
        return len(self._audio_starts) - 1

    def samples(self, index: int) -> np.ndarray:
        """Returns the samples of an utterance, int16."""
        return self._audio[slice(*self._audio_starts[index : index + 2])]

    def tokens(self, index: int) -> np.ndarray:
        """Returns the tokens of a transcript, uint16."""
        return self._tokens[slice(*self._token_starts[index : index + 2])]


def _flat(path: Path, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns all entries of a file, and where those of each utterance start."""
    lengths_path = path.with_name(f"{path.name}.lengths.npy")
    try:
        lengths = np.load(lengths_path)
        values = mapped(path, dtype)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if starts[-1] != len(values):
        raise DataError(f"{path} has {len(values):,} entries, expected {starts[-1]:,}")
    return values, starts


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    They are described at `batches.batch`, samples (B, 320000), tokens (B, 256);
    'eval_train' is 5,376 training utterances, spread over the set.
    """
    folder = DATA_SOURCE.folder(options.folder)
    utterances = Utterances(folder, "train" if split == "eval_train" else split)
    return batches.read(utterances, split, batch_size, seed, options, NUM_EVAL_TRAIN)


def load_vocabulary(data_dir: Path | None) -> Any:
    """Returns the `SentencePieceProcessor` of the prepared set."""
    return sentencepiece.load(DATA_SOURCE.folder(data_dir) / VOCABULARY)


# Preparing the set.


class Record(NamedTuple):
    """An utterance as it is downloaded."""

    path: Path  # of the FLAC file
    transcript: str


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    vocab_size: int = VOCAB_SIZE,
    on_corrupt: OnCorrupt = end,
) -> None:
    """Learns the subwords, decodes the audio, writes both as flat arrays.

    Raises:
      UserError: a part is missing, or a file is broken.
    """
    root = raw / "LibriSpeech" if (raw / "LibriSpeech").is_dir() else raw
    missing = [p for parts in SPLITS.values() for p in parts if not (root / p).is_dir()]
    if missing:
        raise UserError(
            f"{root} holds no {', '.join(missing)}; algoperf data prepare librispeech "
            "says what to download"
        )
    say("learning subwords")
    vocabulary = folder / VOCABULARY
    sentencepiece.learn(
        (r.transcript for r in records(root / VOCABULARY_PART, on_corrupt)),
        vocabulary,
        vocab_size,
        unk_id=UNKNOWN,
        bos_id=START,
        eos_id=END,
        pad_id=-1,
    )
    processor = sentencepiece.load(vocabulary)
    for split, parts in SPLITS.items():
        found = itertools.chain.from_iterable(
            records(root / part, on_corrupt) for part in parts
        )
        _write(found, processor, folder, split, say, on_corrupt)


def records(part: Path, on_corrupt: OnCorrupt = end) -> Iterator[Record]:
    """Yields the utterances of a part, in the order of their names.

    Raises:
      DataError: no transcripts at all; or, from `on_corrupt`, an empty one or one
        without audio.
    """
    transcripts = sorted(part.glob("*/*/*.trans.txt"))
    if not transcripts:
        raise DataError(f"{part} holds no SPEAKER/CHAPTER/*.trans.txt")
    for file in transcripts:
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            name, _, transcript = line.strip().partition(" ")
            audio = file.with_name(f"{name}.flac")
            if not transcript:
                on_corrupt(DataError(f"{file}, line {number}: no transcript"))
            elif not audio.is_file():
                on_corrupt(DataError(f"{file}, line {number}: {audio.name} is missing"))
            else:
                yield Record(audio, transcript)


def read_flac(path: Path) -> np.ndarray:
    """Returns the samples of a file, int16.

    Raises:
      DataError: the file is broken, or not one channel at 16 kHz.
    """
    try:
        import soundfile
    except ImportError as error:
        raise UserError(
            "reading FLAC needs the package soundfile: pip install 'algoperf[full]'"
        ) from error
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
            samples = file.read(dtype="int16")
    except (soundfile.SoundFileError, OSError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({text}); download it again") from error
    if (rate, channels) != (SAMPLE_RATE, 1):
        raise DataError(f"{path} has {channels} channels at {rate} Hz, not 1 at 16,000")
    if not len(samples) or len(samples) != frames:
        raise DataError(
            f"{path} ends after {len(samples):,} of {frames:,} samples; download it "
            "again"
        )
    return samples


def _write(
    found: Iterator[Record],
    processor: Any,
    folder: Path,
    split: str,
    say: Callable[[str], None],
    on_corrupt: OnCorrupt,
) -> None:
    """Writes the samples and tokens of a split, and how many each utterance has."""
    lengths: dict[str, list[int]] = {"audio": [], "tokens": []}
    left_out = 0
    with (
        (folder / f"{split}.audio").open("wb") as audio_file,
        (folder / f"{split}.tokens").open("wb") as token_file,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        while chunk := list(itertools.islice(found, UTTERANCES_AT_ONCE)):
            read = [pool.submit(read_flac, record.path) for record in chunk]
            for record, reading in zip(chunk, read, strict=True):
                try:
                    samples = reading.result()
                    is_long = len(record.transcript) > MAX_CHARACTERS
                    if is_long or len(samples) > MAX_SAMPLES:
                        left_out += 1
                        continue
                    tokens = _encode(record, processor)
                except DataError as error:
                    on_corrupt(error)
                    continue
                audio_file.write(samples.astype("<i2").tobytes())
                token_file.write(tokens.tobytes())
                lengths["audio"].append(len(samples))
                lengths["tokens"].append(len(tokens))
            say(f"{split}: {len(lengths['audio']):,} utterances, {left_out:,} left out")
    for name, sizes in lengths.items():
        path = folder / f"{split}.{name}.lengths.npy"
        np.save(path, np.array(sizes, np.int64))


def _encode(record: Record, processor: Any) -> np.ndarray:
    """Returns the tokens of a transcript, with END, as uint16."""
    tokens = processor.encode(record.transcript, add_eos=True)
    if UNKNOWN in tokens or len(tokens) > MAX_TOKENS:
        raise DataError(
            f"the transcript of {record.path.name} has characters that those of "
            f"{VOCABULARY_PART} have not: {record.transcript[:60]!r}"
        )
    return np.array(tokens, np.uint16)


def count(folder: Path) -> dict[str, int]:
    """Returns the number of utterances of each split."""
    return {split: len(Utterances(folder, split)) for split in SPLITS}


DATA_SOURCE = DataSource(
    name="librispeech",
    instructions=INSTRUCTIONS,
    prepare=prepare,
    count=count,
    num_examples={
        "train": NUM_TRAIN,
        "validation": NUM_VALIDATION,
        "test": NUM_TEST,
    },
)
