"""Submissions loaded from files, good and bad."""

import hashlib

import pytest

from algoperf.errors import UserError
from algoperf.loading import load_submission


def test_a_submission_knows_where_it_comes_from(tmp_path, write_submission):
    submission = write_submission("# a comment\n", name="my-own")
    assert submission.name == "my-own"
    assert submission.path == tmp_path / "my-own.py"
    source = submission.path.read_bytes()
    assert submission.sha256 == hashlib.sha256(source).hexdigest()
    assert not submission.wants_train_state
    space = tmp_path / "tuning_search_space.json"
    assert submission.default_search_space == space


def test_a_submission_of_several_files_is_known_by_all_of_them(
    tmp_path, write_submission
):
    def loaded(**helpers):
        for name, text in helpers.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        text = "import first_helper\nfrom parts import second_helper\n"
        return write_submission(text).sha256

    before = loaded(first_helper="RATE = 1", **{"parts/second_helper": "RATE = 2"})
    assert loaded(not_imported="RATE = 3") == before
    assert loaded(first_helper="RATE = 4") != before
    assert loaded(first_helper="RATE = 1") == before
    assert loaded(**{"parts/second_helper": "RATE = 4"}) != before
    swapped = loaded(first_helper="RATE = 2", **{"parts/second_helper": "RATE = 1"})
    assert swapped != before


def test_a_folder_gives_its_name_and_modules_beside_the_file(tmp_path):
    folder = tmp_path / "sgd"
    folder.mkdir()
    (folder / "sgd_helper_module.py").write_text("RATE = 0.5\n")
    (folder / "submission.py").write_text(
        "import dataclasses\n"
        "import optax\n"
        "from sgd_helper_module import RATE\n"
        "from algoperf.submission import from_optax\n"
        "@dataclasses.dataclass\n"
        "class Facts:\n"
        "    rate: float = RATE\n"
        "(get_batch_size, init_optimizer_state, update_params, _,\n"
        " data_selection) = from_optax(lambda w, h: optax.sgd(Facts().rate))\n"
    )
    submission = load_submission(folder)
    assert submission.name == "sgd"
    state = {"optimizer_state": 1, "current_param_container": 2, "model_state": 3}
    prepare = submission.functions.prepare_for_eval  # the file has none
    assert prepare(**state, global_step=4, rng=None) == (1, 2, 3)


def test_a_point_is_read_by_name_and_is_the_own_one_without(write_submission):
    submission = write_submission()
    assert submission.point({"learning_rate": 0.5}).learning_rate == 0.5
    assert submission.point(None).learning_rate == 0.01
    wrapped = (
        "\nimport functools\n"
        "inner = init_optimizer_state\n"
        "@functools.wraps(inner)\n"
        "def init_optimizer_state(*arguments):\n"
        "    return inner(*arguments)\n"
    )
    assert write_submission(wrapped).point(None).learning_rate == 0.01
    replaced = "\ndef init_optimizer_state(*arguments): pass\n"
    assert write_submission(replaced).point(None) is None


def test_train_state_is_wanted_if_named(write_submission):
    text = "\ndef update_params(workload, train_state=None):\n    pass\n"
    assert write_submission(text).wants_train_state


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module", "imports no_such_module, .*pip install"),
        ("def (", "SyntaxError"),
        ("x = 1\n1 / 0", "bad.py, line 2 cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("", "does not define get_batch_size, init_optimizer_state, update_params, "),
        (
            "from algoperf.submission import from_optax\n"
            "from_optax(None, self_tuned={'learning rate': 1})",
            "cannot be imported: ValueError.*learning rate",
        ),
        (
            "data_selection = update_params = get_batch_size = print",
            "does not define i",
        ),
    ],
)
def test_a_file_that_is_no_submission_is_refused(tmp_path, text, says):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_submission(path)
    assert str(path) in str(caught.value)


def test_names_in_another_order_are_refused(write_submission):
    swapped = "\n_, _, data_selection, _, update_params = from_optax(build)\n"
    with pytest.raises(UserError, match=r"update_params is another .* data_selection;"):
        write_submission(swapped)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no submission at .*none.py: No such file"):
        load_submission(tmp_path / "none.py")
    (tmp_path / "text.txt").write_text("x = 1")
    with pytest.raises(UserError, match=r"text.txt is not a Python file"):
        load_submission(tmp_path / "text.txt")
