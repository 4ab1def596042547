"""LibriSpeech: from FLAC files and transcripts to batches."""

import pickle

import cloudpickle
import jax
import numpy as np
import pytest
import soundfile

from algoperf import cli
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.pipeline import batches
from algoperf.data.source import write_manifest
from algoperf.errors import UserError
from workloads.common.speech import librispeech

WORDS = ["THE", "CAT", "SAT", "ON", "A", "MAT", "IT'S", "QUEER", "FIZZ", "JUMPED"]
WORDS += ["BOX", "VOWELS", "PLANK", "WHARF"]
# Utterances of each part; two of the first one are left out.
PARTS = {
    "train-clean-100": 14,
    "train-clean-360": 5,
    "train-other-500": 4,
    "dev-clean": 4,
    "dev-other": 3,
    "test-clean": 6,
}
KEPT = {"train": 21, "validation": 7, "test": 6}


def utterance(part, number):
    """Samples and transcript; the first part has one too long in each."""
    rng = np.random.default_rng([list(PARTS).index(part), number])
    words = rng.choice(WORDS, rng.integers(3, 12))
    samples = rng.integers(400, 3000)
    if part == "train-clean-100" and number == 3:
        samples = librispeech.MAX_SAMPLES + 1
    if part == "train-clean-100" and number == 7:
        words = ["MAT"] * 80
    if part == "train-clean-100" and number == 8:
        samples = librispeech.MAX_SAMPLES
    return rng.integers(-3000, 3000, samples).astype(np.int16), " ".join(words)


def write(root, change=lambda part, number, transcript: transcript):
    for part, size in PARTS.items():
        for number in range(size):
            speaker, chapter = 100 + number // 4, 7
            folder = root / part / str(speaker) / str(chapter)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{speaker}-{chapter}-{number:04d}"
            samples, transcript = utterance(part, number)
            soundfile.write(folder / f"{name}.flac", samples, 16_000)
            with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
                print(name, change(part, number, transcript), file=file)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("librispeech")
    write(folder / "raw/LibriSpeech")
    prepared = folder / "data/librispeech"
    prepared.mkdir(parents=True)
    librispeech.prepare(folder / "raw", prepared, print, vocab_size=36)
    write_manifest(prepared, librispeech.count(prepared))
    return folder / "data"


def read(data_dir, split, size=4, seed=0, **options):
    options = DataOptions(folder=data_dir, **options)
    return librispeech.pipeline(split, size, seed, options)


def kept(split):
    return [
        utterance(part, number)
        for part in librispeech.SPLITS[split]
        for number in range(PARTS[part])
        if part != "train-clean-100" or number not in (3, 7)
    ]


def utterances(batch, vocabulary, rows):
    """The (samples, transcript) of rows of a batch."""
    (audio, audio_paddings), (tokens, token_paddings) = (
        batch["inputs"],
        batch["targets"],
    )
    found = []
    for row in rows:
        length = int((audio_paddings[row] == 0).sum())
        assert not audio_paddings[row, :length].any()  # padding stands at the end
        assert not audio[row, length:].any()
        ids = tokens[row][token_paddings[row] == 0]
        assert ids[-1] == librispeech.END
        assert not tokens[row][len(ids) :].any()
        text = vocabulary.decode(ids.tolist())
        found.append((audio[row, :length].tolist(), text))
    return found


def test_long_utterances_and_transcripts_are_left_out(data_dir):
    assert librispeech.count(data_dir / "librispeech") == KEPT
    assert {split: len(kept(split)) for split in KEPT} == KEPT


def test_an_epoch_holds_every_utterance_once(data_dir):
    vocabulary = librispeech.load_vocabulary(data_dir)
    stream = read(data_dir, "train", size=7)  # 21 utterances
    epochs = []
    for epoch in range(2):
        found = []
        for i in range(3):
            batch = stream[3 * epoch + i]
            found += utterances(batch, vocabulary, range(7))
        assert sorted(found) == sorted((a.tolist(), t) for a, t in kept("train"))
        epochs.append(found)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_holds_every_utterance_once_in_order(data_dir, split):
    vocabulary = librispeech.load_vocabulary(data_dir)
    stream = read(data_dir, split)
    found = []
    for i in range(len(stream)):
        real = np.flatnonzero(stream[i]["weights"])
        found += utterances(stream[i], vocabulary, real)
    assert found == [(samples.tolist(), text) for samples, text in kept(split)]


def test_eval_train_is_utterances_of_the_training_set(data_dir):
    stream = read(data_dir, "eval_train")
    assert sum(stream[i]["weights"].sum() for i in range(len(stream))) == 21


def test_batches_have_the_documented_shapes(data_dir):
    batch = read(data_dir, "train")[0]
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), batch)
    assert shapes == {
        "inputs": (((4, 320_000), "int16"), ((4, 320_000), "uint8")),
        "targets": (((4, 256), "int32"), ((4, 256), "float32")),
    }
    evaluated = read(data_dir, "test")[0]
    assert evaluated["weights"].dtype == np.float32
    assert evaluated["weights"].shape == (4,)


def test_the_stream_follows_from_the_seed_and_any_position_can_be_read(data_dir):
    stream = read(data_dir, "train")
    straight = [batch for batch, _ in zip(batches(stream), range(5), strict=False)]
    for i in (4, 0, 3):
        jax.tree.map(np.testing.assert_array_equal, stream[i], straight[i])
    other = read(data_dir, "train", seed=1)[0]
    assert not np.array_equal(other["targets"][0], straight[0]["targets"][0])


def test_the_audio_stays_on_disk_on_the_way_to_workers(data_dir):
    audio = data_dir / "librispeech" / "train.audio"
    assert audio.stat().st_size > 600_000
    pickled = cloudpickle.dumps(read(data_dir, "train"))
    assert len(pickled) < 20_000
    batch = pickle.loads(pickled)[3]
    jax.tree.map(np.testing.assert_array_equal, batch, read(data_dir, "train")[3])


def test_hosts_share_a_batch(data_dir):
    whole = read(data_dir, "train")[1]
    parts = [read(data_dir, "train", host=h, num_hosts=2)[1] for h in (0, 1)]
    joined = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_the_blank_is_no_token_of_a_transcript(data_dir):
    vocabulary = librispeech.load_vocabulary(data_dir)
    assert vocabulary.vocab_size() == 36
    assert vocabulary.eos_id() == librispeech.END
    assert vocabulary.unk_id() == librispeech.UNKNOWN == 0
    assert 0 in vocabulary.encode("É")
    assert 0 not in vocabulary.encode(" ".join(WORDS))


def test_missing_data_is_named_with_the_command(data_dir, tmp_path, capfd):
    with pytest.raises(UserError, match="algoperf data prepare librispeech"):
        read(tmp_path, "train")
    arguments = [f"--raw={tmp_path}", f"--data_dir={tmp_path}/data"]
    assert cli.main(["data", "prepare", "librispeech", *arguments]) != 0
    assert "train-clean-100" in capfd.readouterr().err
    folder = data_dir / "librispeech"
    for name in ("test.audio", "test.tokens"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-2])
        try:
            with pytest.raises(DataError, match=rf"{name} has [\d,]+ entries"):
                read(data_dir, "test")
            (folder / name).unlink()
            with pytest.raises(DataError, match=rf"{name} cannot be read"):
                read(data_dir, "test")
        finally:
            (folder / name).write_bytes(whole)


def prepare_broken(tmp_path, damage, **options):
    write(tmp_path / "raw")
    damage(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    options = {"vocab_size": 36, **options}
    librispeech.prepare(tmp_path / "raw", tmp_path / "out", print, **options)


FLAC = "dev-clean/100/7/100-7-0002.flac"
TEXT = "dev-clean/100/7/100-7.trans.txt"


def _cut(root):
    whole = (root / FLAC).read_bytes()
    (root / FLAC).write_bytes(whole[: len(whole) // 2])


def _empty(root):
    lines = (root / TEXT).read_text().splitlines()
    (root / TEXT).write_text("\n".join([*lines[:2], "100-7-0002 ", lines[3]]))


def _other_rate(root):
    soundfile.write(root / FLAC, np.zeros(500, np.int16), 8000)


def _other_letters(root):
    lines = (root / TEXT).read_text().splitlines()
    (root / TEXT).write_text("\n".join([*lines[:2], "100-7-0002 ÜBER", lines[3]]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"100-7-0002.flac (cannot be read|ends after)"),
        (lambda root: (root / FLAC).write_bytes(b"no flac"), r"flac cannot be read"),
        (lambda root: (root / FLAC).unlink(), r"line 3: 100-7-0002.flac is missing"),
        (_empty, r"100-7.trans.txt, line 3: no transcript"),
        (_other_rate, r"100-7-0002.flac has 1 channels at 8000 Hz"),
        (_other_letters, r"transcript of 100-7-0002.flac has characters"),
    ],
    ids=["cut", "foreign", "missing", "empty", "rate", "letters"],
)
def test_a_broken_utterance_is_named(tmp_path, damage, message):
    with pytest.raises(DataError, match=message) as seen:
        prepare_broken(tmp_path, damage)
    assert "\n" not in str(seen.value)
    skipped = []
    prepare_broken(tmp_path / "again", damage, on_corrupt=skipped.append)
    assert list(map(str, skipped)) == [
        str(seen.value).replace(str(tmp_path), str(tmp_path / "again"))
    ]
    kept = {**KEPT, "validation": KEPT["validation"] - 1}
    assert librispeech.count(tmp_path / "again" / "out") == kept
