"""Profiles on disk, other hardware, the picture; measuring on this machine."""

import dataclasses
import json
import math
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import pytest
from decoders import SHAPES, TRAINED, drawn_params

from algoperf.errors import UserError
from algoperf.inference.models import decoder
from algoperf.inference.timing import measure, plot, profiler, profiles
from algoperf.inference.timing.profiles import Profile, Setting

GRID = profiler.make_grid(1024)
HERE = {"platform": "cpu", "device_kind": "cpu", "device_count": 1, "cpu": "Some CPU"}


def fake_seconds(p, o):
    return 0.02 + 0.0001 * max(0, p - 100) + 0.004 * (o - 1)


@pytest.fixture(scope="module")
def profile():
    times = {c: (fake_seconds(*c),) * 3 for c in (*GRID.cells, *GRID.held_out)}
    shape = dataclasses.replace(
        SHAPES["like llama"], name='llama <&"> 1', max_length=1024
    )
    return Profile(
        shape=shape,
        setting=Setting(clock="cpu", cores=1),
        result=profiler.fit_result(times, GRID),
        hardware=HERE,
        versions={"jax": "0.10"},
    )


def test_a_profile_is_read_as_it_was_written(profile, tmp_path):
    path = tmp_path / "profile.json"
    profile.save(path)
    assert profiles.load_profile(path) == profile


def test_another_form_can_be_fitted_to_a_profile(profile):
    again = profiles.refitted(profile, "table", context_slope=False)
    assert again.runtime.prompt_seconds.rule == "table"
    assert again.runtime.predict(512, 1) == pytest.approx(fake_seconds(512, 1))
    assert again.result.held_out == profile.result.held_out


def test_a_refit_keeps_the_limit_of_a_smaller_cache(profile):
    """Long cells were not measured, and their times are still not known."""
    grid = profiler.make_grid(256, (16, 64, 128), (1, 32, 160))
    assert (128, 160) not in grid.cells
    times = {c: (fake_seconds(*c),) * 3 for c in (*grid.cells, *grid.held_out)}
    small = dataclasses.replace(
        profile,
        setting=Setting(capacity=256),
        result=profiler.fit_result(times, grid),
    )
    again = profiles.refitted(small, "affine")
    assert again.runtime.prompt_seconds.rule == "affine"
    assert again.runtime.max_length == 256
    with pytest.raises(UserError, match="256 that the model holds"):
        again.runtime.predict(200, 100)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cpu": "Another"}, "cpu 'Some CPU', here 'Another'"),
        ({"platform": "gpu"}, "platform"),
        ({"device_kind": "H100"}, "device_kind"),
    ],
)
def test_a_profile_of_other_hardware_is_an_error(profile, change, says):
    profiles.check_hardware(profile, HERE, cores=2)
    with pytest.raises(UserError, match=says):
        profiles.check_hardware(profile, HERE | change)


def test_fewer_cores_are_other_hardware(profile):
    four = dataclasses.replace(profile, setting=Setting(cores=4))
    with pytest.raises(UserError, match="4 cores, here 2"):
        profiles.check_hardware(four, HERE, cores=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot read"),
        ("{", "no JSON"),
        ("[]", "no profile"),
        ('{"kind": "other"}', "no profile"),
        ('{"kind": "algoperf inference profile", "schema_version": 9}', "version 9"),
        ('{"kind": "algoperf inference profile", "schema_version": 1}', "broken"),
    ],
)
def test_what_is_no_profile_is_an_error(text, says, tmp_path):
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        profiles.load_profile(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("hardware",), "H100"),
        (("runtime", "max_length"), "x"),
        (("runtime", "seconds_per_token"), math.nan),
        (("runtime", "seconds_per_token"), None),
        (("cells",), 3),
    ],
)
def test_a_broken_value_is_an_error(where, value, profile, tmp_path):
    path = tmp_path / "profile.json"
    profile.save(path)
    whole = json.loads(path.read_text())
    inner = whole
    for name in where[:-1]:
        inner = inner[name]
    assert where[-1] in inner
    inner[where[-1]] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="is a broken profile"):
        profiles.load_profile(path)


def test_the_picture_shows_every_kind_of_cell(profile):
    root = ET.fromstring(plot.profile_svg(profile))
    circles = [el for el in root.iter() if el.tag.endswith("circle")]
    hollow = [el for el in circles if el.get("fill") == "white"]
    texts = [el.text for el in root.iter() if el.tag.endswith("text")]
    assert len(circles) > 20
    assert hollow
    assert "prompt tokens" in texts
    assert "output tokens" in texts
    width = float(root.get("width"))
    for circle in circles:
        assert 0 <= float(circle.get("cx")) <= width
        assert 0 <= float(circle.get("cy")) <= float(root.get("height"))


def test_the_page_escapes_names(profile):
    page = plot.profile_page(profile)
    assert "llama &lt;&amp;&quot;&gt; 1" in page
    assert '<&">' not in page
    assert "1 core of Some CPU, process time" in page


def test_the_page_says_why_not_to_trust_it(profile):
    assert "trusted" not in plot.profile_page(profile)
    noisy = dataclasses.replace(profile.result, uncertainty=0.5)
    page = plot.profile_page(dataclasses.replace(profile, result=noisy))
    assert "Not to be trusted" in page
    assert "only known within 50.0 %" in page


def test_lines_go_through_points_where_the_model_is_exact(profile):
    for o in (2, 8, 32):
        found = profile.runtime.predict(256, o)
        assert type(found) is float
        assert found == pytest.approx(fake_seconds(256, o), rel=1e-3)


@pytest.fixture(scope="module")
def measured():
    shape = TRAINED
    return measure.decoder_measure(
        shape, drawn_params(shape), clock=time.process_time, capacity=32
    )


def test_requests_of_the_asked_lengths_run_under_the_clock(monkeypatch):
    """A clock that counts what was computed: a tick a token, of prompts and outputs."""
    tokens = 0
    prefill, decode = decoder.compiled_prefill, decoder.compiled_decode

    def counted_prefill(shape, params, prompt_BP, *rest):
        nonlocal tokens
        tokens += prompt_BP.shape[1]
        return prefill(shape, params, prompt_BP, *rest)

    def counted_decode(shape, params, logits_BV, prompt, cache, output, key):
        nonlocal tokens
        tokens += output
        return decode(shape, params, logits_BV, prompt, cache, output, key)

    monkeypatch.setattr(decoder, "compiled_prefill", counted_prefill)
    monkeypatch.setattr(decoder, "compiled_decode", counted_decode)
    shape = TRAINED
    count = measure.decoder_measure(
        shape, drawn_params(shape), clock=lambda: tokens, capacity=32
    )
    for prompt, output in ((4, 1), (4, 28), (9, 3)):
        assert count(prompt, output) == prompt + output


def test_a_request_that_does_not_fit_is_an_error(measured):
    with pytest.raises(UserError, match="do not fit a cache of 32"):
        measured(30, 4)
    with pytest.raises(UserError, match="more than the 48"):
        measured(40, 9)


def test_the_clock_is_an_argument():
    """A clock that counts calls: one tick a measurement, over its repeats."""
    shape = TRAINED
    ticks = iter(range(10_000))
    count = measure.decoder_measure(
        shape, drawn_params(shape), clock=lambda: next(ticks), capacity=32
    )
    assert count(4, 1) == 1  # a request "takes" a second, so it is not repeated
    before = next(ticks)
    count(4, 1)
    assert next(ticks) - before == 3


def test_random_params_are_those_of_the_shape():
    shape = dataclasses.replace(TRAINED, num_layers=1)
    params = measure.random_params(shape, "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert params["layers"][0]["up"]["kernel"].shape == (24, 40)


def test_profiles_are_plain_json(profile, tmp_path):
    path = Path(tmp_path / "profile.json")
    profile.save(path)
    value = json.loads(path.read_text())
    assert value["runtime"]["seconds_per_token"] == pytest.approx(0.004)
    assert sum(cell["held_out"] for cell in value["cells"]) == len(GRID.held_out)
