"""The embedded spoken words: splits, utterances, batches, the build script."""

import hashlib
import io
import sys
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf.data.embedded import load_embedded, read_about
from algoperf.data.examples import DataOptions
from algoperf.workload import EVAL_SPLITS
from workloads.common.speech import make_spoken_words, spoken_words
from workloads.common.speech.recognition import word_error_rate
from workloads.librispeech_conformer.workload import WORKLOADS as CONFORMER
from workloads.librispeech_deepspeech.workload import WORKLOADS as DEEPSPEECH

SIZES = {
    "train": spoken_words.NUM_TRAIN,
    "validation": spoken_words.NUM_VALIDATION,
    "test": spoken_words.NUM_TEST,
}
MINI = [w for w in (*CONFORMER, *DEEPSPEECH) if w.scale == "mini"]


def utterances(split):
    return spoken_words.utterances(split, SIZES[split])


def read(split, size=8, seed=0, **options):
    return spoken_words.dataset(split, size, seed, DataOptions(**options))


def test_no_voice_no_text_and_no_audio_is_in_two_splits():
    voices = [{u.voice for u in utterances(split)} for split in SIZES]
    texts = [{u.text for u in utterances(split)} for split in SIZES]
    audio = [
        {hashlib.sha256(spoken_words.sound(u)).digest() for u in utterances(split)}
        for split in SIZES
    ]
    for sets in (voices, texts, audio):
        assert sum(map(len, sets)) == len(set().union(*sets))
    assert [len(sounds) for sounds in audio] == list(SIZES.values())


def test_like_voices_are_in_one_split():
    found: dict[str, set[int]] = {}
    voices = make_spoken_words.voices()
    for variant, split in voices:
        found.setdefault(make_spoken_words.group(variant), set()).add(split)
    assert all(len(splits) == 1 for splits in found.values())
    assert spoken_words.recordings()[1].tolist() == [s for _, s in voices]


def test_recordings_are_those_of_the_words():
    by_voice, splits = spoken_words.recordings()
    about = read_about(spoken_words.EMBEDDED)
    assert about["words"] == list(spoken_words.WORDS)
    assert len(by_voice) == len(splits) == sum(about["voices"].values())
    digests = set()
    for voice in by_voice:
        assert len(voice) == len(spoken_words.WORDS)
        for recording in voice:
            assert 0.1 < len(recording) / spoken_words.SAMPLE_RATE < 0.8
            digests.add(hashlib.sha256(recording).digest())
    # No two voices speak a word alike.
    assert len(digests) == len(by_voice) * len(spoken_words.WORDS)


@pytest.mark.parametrize("split", SIZES)
def test_utterances_fit_and_can_be_spelt(split):
    """CTC needs a frame for each token, and one more between two that are alike."""
    for u in utterances(split):
        size = len(spoken_words.sound(u))
        assert size <= spoken_words.MAX_SAMPLES
        assert len(u.text) <= spoken_words.MAX_TOKENS
        alike = sum(a == b for a, b in zip(u.text, u.text[1:], strict=False))
        frames = size // spoken_words.LOG_MEL.step // 4
        assert len(u.text) + alike <= frames
        assert spoken_words.FEWEST_WORDS <= len(u.words) <= spoken_words.MOST_WORDS


def test_an_utterance_is_its_recordings_in_noise():
    by_voice, _ = spoken_words.recordings()
    u = next(u for u in utterances("validation") if u.noise < 0.15)
    samples = spoken_words.sound(u)
    place, at_rest = 0, []
    for pause, word in zip(u.pauses, u.words, strict=False):
        at_rest.append(samples[place : place + pause])
        place += pause
        size = round(len(by_voice[u.voice][word]) / u.speed)
        recording = spoken_words.played(by_voice[u.voice][word], size)
        heard = samples[place : place + size].astype(np.float64)
        place += size
        correlation = np.corrcoef(heard, recording)[0, 1]
        assert correlation > 0.9
    assert place + u.pauses[-1] == len(samples)
    assert np.concatenate(at_rest).std() > 0


def test_noise_is_as_loud_as_drawn():
    tape = spoken_words.noise_tape()
    assert np.square(tape).mean() == pytest.approx(1, rel=0.05)
    levels = [20 * np.log10(u.noise) for u in utterances("train")]
    quiet, loud = -spoken_words.NOISE_DECIBELS[1], -spoken_words.NOISE_DECIBELS[0]
    assert quiet < min(levels) < quiet + 1
    assert loud - 1 < max(levels) < loud


def test_mu_law():
    codes = np.arange(-127, 128).astype(np.int8).view(np.uint8)
    assert np.array_equal(spoken_words.compress(spoken_words.expand(codes)), codes)
    samples = np.linspace(-1, 1, 999)
    error = spoken_words.expand(spoken_words.compress(samples)) - samples
    assert np.abs(error).max() < 0.025
    assert np.abs(error[np.abs(samples) < 0.01]).max() < 5e-4


def test_vocabulary():
    vocabulary = spoken_words.load_vocabulary(None)
    text = " ".join(spoken_words.WORDS)
    tokens = vocabulary.encode(text)
    assert vocabulary.decode([tokens, []]) == [text, ""]
    assert sorted(set(tokens)) == list(range(1, spoken_words.VOCAB_SIZE))


def test_features_have_mean_0_and_are_larger_than_positions():
    (audio, paddings), _ = read("train", 128)[0].values()
    features, is_padding = spoken_words.LOG_MEL(
        jnp.asarray(audio), jnp.asarray(paddings)
    )
    real = np.asarray(features)[np.asarray(is_padding) == 0]
    assert abs(real.mean()) < 0.5
    assert 2.5 < real.std() < 3.7


def test_batches_have_the_documented_shapes():
    batch = read("train", 4)[0]
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), batch)
    assert shapes == {
        "inputs": (((4, 16_000), "int16"), ((4, 16_000), "uint8")),
        "targets": (((4, 32), "int32"), ((4, 32), "float32")),
    }
    for split in EVAL_SPLITS:
        assert read(split, 4)[0]["weights"].tolist() == [1] * 4


def test_batches_follow_from_seed_and_position():
    stream, again, other = read("train"), read("train"), read("train", seed=1)
    _ = again[3]
    for a, b in zip(jax.tree.leaves(stream[7]), jax.tree.leaves(again[7]), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(stream[7]["targets"][0], other[7]["targets"][0])
    assert not np.array_equal(stream[7]["targets"][0], stream[8]["targets"][0])
    halves = [read("train", host=h, num_hosts=2)[7] for h in (0, 1)]
    joined = jax.tree.map(lambda *a: np.concatenate(a), *halves)
    jax.tree.map(np.testing.assert_array_equal, joined, stream[7])


def test_evaluation_splits_have_the_stated_sizes():
    sizes = {**SIZES, "eval_train": spoken_words.NUM_EVAL_TRAIN}
    for split in EVAL_SPLITS:
        stream = read(split, 40)
        weights = np.concatenate([stream[i]["weights"] for i in range(len(stream))])
        assert weights.sum() == sizes[split]


def test_nothing_heard_and_one_phrase_for_all_are_far_from_the_targets():
    """No transcript at all has rate 1; one word, once or more, for all hardly less."""
    references = [u.text for u in utterances("validation")]
    assert word_error_rate(references, [""] * len(references)) == 1.0
    best = min(
        word_error_rate(references, [" ".join([word] * count)] * len(references))
        for word in spoken_words.WORDS
        for count in (1, 3)
    )
    assert 0.9 < best < 1.0
    assert all(w.validation_target_value < 0.6 for w in MINI)


@pytest.mark.parametrize("workload", MINI, ids=lambda w: w.name)
def test_mini_workloads(workload):
    assert workload.num_parameters < 200_000
    batch = workload.dataset("train", 8, seed=0)[0]
    assert batch["inputs"][0].shape == (8, *workload.input_shape)
    assert batch["inputs"][0].dtype == workload.input_dtype
    assert jax.tree.structure(workload.model_params_types) == jax.tree.structure(
        workload.param_shapes
    )
    assert set(workload.output_params) <= set(workload.param_shapes)
    shapes = jax.eval_shape(
        lambda params, state: workload.model.apply(
            {"params": params, **state}, *batch["inputs"], train=False
        ),
        *jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0)),
    )
    assert shapes[0].shape == (8, 50, spoken_words.VOCAB_SIZE)


def test_variants_differ_from_their_base_as_at_full_scale():
    for workloads in (CONFORMER, DEEPSPEECH):
        changed = {
            scale: {
                w.variant: sorted(changes(w, workloads))
                for w in workloads
                if w.scale == scale
            }
            for scale in ("full", "mini")
        }
        assert changed["mini"] == changed["full"]


def changes(workload, workloads):
    """The names of the model's fields that are not those of the base."""
    base = next(
        w
        for w in workloads
        if w.scale == workload.scale and w.variant == w.base_workload
    )
    fields = workload.model.__dataclass_fields__
    return [
        name
        for name in fields
        if name not in ("parent", "name")
        and getattr(workload.model, name) != getattr(base.model, name)
    ]


# The build script, with a program that hums instead of speaking.

HUMMER = """#!{python}
import sys, wave, math, struct
*_, word = sys.argv
voice = sys.argv[sys.argv.index("-v") + 1]
pitch = 200 + 7 * len(voice) + 31 * sum(map(ord, word)) % 900
samples = [0] * 500 + [int(9000 * math.sin(i * pitch / 3500)) for i in range(4000)]
with wave.open(sys.stdout.buffer, "wb") as file:
    file.setparams((1, 2, 22050, len(samples) + 200, "NONE", ""))
    file.writeframes(struct.pack(f"<{{len(samples)}}h", *samples) + bytes(400))
"""


def test_build_script(tmp_path, monkeypatch, capsys):
    program = tmp_path / "hummer"
    program.write_text(HUMMER.format(python=sys.executable))
    program.chmod(0o755)
    variants = ("ann1", "ann2", "bob", "cy", "di", "eve", "flo")
    monkeypatch.setattr(make_spoken_words, "VARIANTS", variants)
    monkeypatch.setattr(spoken_words, "WORDS", ("yes", "no"))
    monkeypatch.setattr(sys, "argv", ["make_spoken_words", f"--program={program}"])
    made = []
    for name in ("one", "two"):
        monkeypatch.setattr(spoken_words, "EMBEDDED", tmp_path / name)
        make_spoken_words.main()
        made.append((tmp_path / f"{name}.npz.xz").read_bytes())
    assert made[0] == made[1]
    arrays = load_embedded(tmp_path / "two")
    assert arrays["splits"].tolist() == [0, 0, 0, 0, 1, 0, 2, *[0] * 5]
    assert arrays["lengths"].shape == (12, 2)
    assert arrays["lengths"].sum() == len(arrays["codes"])
    # 4,000 samples at 22,050 Hz are 1,451 at 8,000 Hz; silence is cut off.
    assert np.abs(arrays["lengths"].astype(int) - 1451).max() < 20
    loudest = np.abs(spoken_words.expand(arrays["codes"])).max()
    assert loudest == pytest.approx(make_spoken_words.PEAK, rel=0.03)
    assert "train" in capsys.readouterr().out


def test_a_recording_whose_header_gives_no_length_is_read_whole(tmp_path):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 22050, 0, "NONE", ""))
        out.writeframes(np.arange(1000, dtype="<i2").tobytes())
    raw = bytearray(file.getvalue())
    raw[40:44] = (0x7FFFF000).to_bytes(4, "little")  # as eSpeak NG writes
    (tmp_path / "spoken.wav").write_bytes(raw)
    program = tmp_path / "player"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/spoken.wav\n")
    program.chmod(0o755)
    samples, rate = make_spoken_words.speak(str(program), [], "yes")
    assert rate == 22050
    assert samples.tolist() == list(range(1000))
