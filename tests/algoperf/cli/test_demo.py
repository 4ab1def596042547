"""`demo` is a sweep and its score."""

import pytest

from algoperf import cli


def test_a_sweep_that_fails_is_not_scored(monkeypatch, tmp_path):
    called = []
    real = cli.main

    def main(arguments):
        called.append(arguments)
        return real(arguments) if arguments[0] == "demo" else 1

    monkeypatch.setattr(cli, "main", main)
    assert cli.main(["demo", f"--out={tmp_path}", "--max_steps=2"]) == 1
    assert called[1:] == [
        [
            "sweep",
            "--submissions=adamw,momentum",
            "--suite=mini_fast",
            "--max_steps=2",
            f"--out={tmp_path}",
        ]
    ]


def test_an_address_is_no_folder(capsys):
    assert cli.main(["demo", "--out=gs://bucket/demo"]) == 1
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_demo_leaves_records_a_page_and_tables(tmp_path, capsys):
    out = tmp_path / "demo"
    assert (
        cli.main(["demo", f"--out={out}", "--submissions=adamw", "--max_steps=2"]) == 0
    )
    assert len(list(out.rglob("record.json"))) == 2
    assert "<html" in (tmp_path / "demo.html").read_text()
    assert list((tmp_path / "demo-csv").glob("*.csv"))
    assert "adamw" in capsys.readouterr().out
