"""`algoperf infer profile` of workloads that are no decoders, and `compare`."""

import json

import pytest

from algoperf import cli

SMALL = ("--rounds=3", "--seconds=0", "--accept_noise", "--cores=0", "--json=-")


def profiled(name, *arguments):
    return ["infer", "profile", name, *arguments, *SMALL]


@pytest.mark.slow
def test_translation(tmp_path, capsys):
    command = profiled("wmt", "--prompts=4,8", "--outputs=1,8", f"--out={tmp_path}")
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "wmt_mini.json").read_text())
    assert found["runtime"]["seconds_per_token"] > 0
    fitted = {
        (cell["source"], cell["output"])
        for cell in found["cells"]
        if not cell["held_out"]
    }
    assert fitted == {(4, 1), (4, 8), (8, 1), (8, 8)}
    assert found["hardware"]["platform"] == "cpu"


def test_a_translation_is_held_out_only_at_lengths_that_the_model_takes(
    tmp_path, capsys, monkeypatch
):
    """Not at three halves of the longest output, which nobody asked for."""
    from algoperf.inference.timing import encoder_decoder

    def made(model, params, batch_size, clock, longest):
        def measure(source, output):
            assert max(source, output) <= longest
            return 0.01 + 0.001 * (source + output)

        return measure

    monkeypatch.setattr(encoder_decoder, "translation_measure", made)
    command = profiled("wmt", "--prompts=4,8", "--outputs=1,32,64", f"--out={tmp_path}")
    assert cli.main(command) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    held_out = [(c["source"], c["output"]) for c in cells if c["held_out"]]
    assert held_out == [(6, 48)]


@pytest.mark.slow
def test_speech(tmp_path, capsys):
    command = profiled(
        "librispeech_deepspeech", "--prompts=4000,16000", f"--out={tmp_path}"
    )
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "seconds of a forward pass, by samples"
    assert [cell["size"] for cell in found["cells"]] == [4000, 16_000]


def test_images(tmp_path, capsys):
    """As text: latency, throughput, and where it is written."""
    command = profiled("imagenet_resnet", "--prompts=1,4", f"--out={tmp_path}")[:-1]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "1 example " in text
    assert "examples per second" in text
    assert (tmp_path / "imagenet_resnet_mini.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["criteo1tb", "ogbg", "fastmri", "imagenet_vit", "librispeech_conformer"]
)
def test_all_others(name, tmp_path, capsys):
    size = "16000" if name.startswith("librispeech") else "2"
    assert cli.main(profiled(name, f"--prompts={size}", f"--out={tmp_path}")) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert len(cell["seconds"]) == 3


def test_a_noisy_machine_is_refused(tmp_path, capsys, monkeypatch):
    from algoperf.inference.timing import size_time

    monkeypatch.setattr(size_time, "uncertainty_of", lambda times: 0.5)
    command = profiled("imagenet_resnet", "--prompts=1", f"--out={tmp_path}")
    command.remove("--accept_noise")
    assert cli.main(command) == 1
    assert "only known within 50.0 %" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fit_that_misses_is_refused(tmp_path, capsys):
    """Seconds that no line goes through, whatever the machine."""
    command = profiled(
        "imagenet_resnet", "--prompts=1,2,63,64", "--rule=hinge", f"--out={tmp_path}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "algoperf.inference.timing.forward_time.forward_measure",
            lambda workload, clock: lambda size, _: 1.0 + size % 2,
        )
        assert cli.main(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["r2"] < 0.995
        assert "R2 of the fit is" in found["reason_not_to_trust"]
        command.remove("--accept_noise")
        assert cli.main(command) == 1
    assert "R2 of the fit is" in capsys.readouterr().err


@pytest.mark.slow
def test_compare(tmp_path, capsys):
    arguments = ["--batch=4", f"--out={tmp_path}", *SMALL]
    assert cli.main(["infer", "compare", "imagenet_resnet", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [model["name"] for model in found["models"]]
    assert names[0] == "imagenet_resnet_mini"
    assert "imagenet_resnet_double_width_mini" in names
    assert found["rank_correlations"]["multiply-adds, latency"]["count"] == len(names)


@pytest.mark.parametrize("name", ["wmt", "imagenet_vit"])
@pytest.mark.parametrize(
    "flag",
    ["--weights=nvfp4", "--pack_embedding", "--rank=4", "--prune=0.5", "--nocompact",
     "--noevaluate", "--longest=64", "--data_dir=x"],
)  # fmt: skip
def test_how_decoders_are_served_is_not_passed_over(name, flag, capsys, tmp_path):
    assert cli.main(["infer", "profile", name, flag, f"--out={tmp_path}"]) == 1
    flag = flag.partition("=")[0].replace("--no", "--")
    assert f"{flag} has no meaning for {name}_mini" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profile", "wmt_x"], "unknown workload"),
        (["profile", "wmt", "--dtype=bfloat16"], "--dtype has no meaning for wmt_mini"),
        (["profile", "imagenet_vit", "--outputs=1,2"], "--outputs has no meaning"),
        (["profile", "imagenet_vit", "--prompts=a"], "--prompts a: give whole numbers"),
        (["profile", "wmt", "--prompts=65,66,67"], "takes 64 of each"),
        (["compare"], "give one WORKLOAD"),
        (["compare", "imagenet"], "unknown workload"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, tmp_path):
    assert cli.main(["infer", *arguments, f"--out={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
