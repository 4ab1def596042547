"""Every command and every Python example of the docs works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from algoperf import cli, spec
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


def test_submission_example():
    (example,) = _blocks(ROOT / "docs" / "submissions.md", "python")
    names = {}
    exec(compile(example, "docs/submissions.md", "exec"), names)
    assert all(callable(names[function]) for function in SubmissionFunctions._fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_contract_names_what_the_docs_name():
    text = (ROOT / "docs" / "submissions.md").read_text()
    for name in ("data_selection", "prepare_for_eval", "update_params"):
        assert name in text
        assert hasattr(spec.Submission, name)
