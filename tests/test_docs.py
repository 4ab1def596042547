"""Every command and every Python example of the docs works as it stands."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import scripts
from absl import flags

from algoperf import cli, registry, spec
from algoperf.submission import SubmissionFunctions

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def _commands(page):
    return "".join(_blocks(page, "bash")).splitlines()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if _commands(page)], ids=lambda page: page.name
)
def test_commands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in _commands(page):
        program, *arguments = shlex.split(command)
        assert program == "algoperf"
        assert cli.main(arguments) == 0, command


def _mentioned(page):
    """Returns the commands that a page shows, in the text too: words of each."""
    text = re.sub(r"\\\n *", "", page.read_text())
    shown = re.findall(r"^    (algoperf [^#\n]*)|`(algoperf\s[^`]*)`", text, re.M)
    return [(line or span).split()[1:] for line, span in shown]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page):
    """Those that take long are not run; what they are called is checked."""
    for name, *arguments in _mentioned(page):
        if name.startswith("--"):
            continue
        assert name in cli.COMMANDS or name.isupper(), name
        if name.isupper():
            continue
        values = flags.FlagValues()
        importlib.import_module(f"algoperf.cli.{name}").define_flags(values)
        for argument in arguments:
            if argument.startswith("--") and argument != "--help":
                flag = argument[2:].partition("=")[0].replace("-", "_")
                assert flag in values, (name, argument)


def test_submission_example():
    names = {}
    for example in _blocks(ROOT / "docs" / "writing_a_submission.md", "python"):
        exec(compile(example, "docs/writing_a_submission.md", "exec"), names)
    assert all(callable(names[function]) for function in SubmissionFunctions._fields)


make_algorithms = scripts.load("docs/make_algorithms.py")
NAMES = sorted(registry.submission_paths())


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("sgd", "lion") else pytest.param(n, marks=pytest.mark.slow)
        for n in NAMES
    ],
)
def test_the_table_of_algorithms_is_what_the_script_writes(name):
    rows = make_algorithms.PAGE.read_text().splitlines(keepends=True)
    facts = make_algorithms.measurement()
    assert make_algorithms.row(name, registry.find_submission(name), facts) in rows


def test_the_table_of_algorithms_is_whole():
    head = make_algorithms.head(make_algorithms.measurement())
    head, *rows = make_algorithms.PAGE.read_text().partition(head)[1:]
    assert head
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows[0].splitlines()]
    assert names == NAMES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_contract_names_what_the_docs_name():
    text = (ROOT / "docs" / "writing_a_submission.md").read_text()
    for name in ("data_selection", "prepare_for_eval", "update_params"):
        assert name in text
        assert hasattr(spec.Submission, name)
