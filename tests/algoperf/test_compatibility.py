"""Files of official submissions load as they are; nothing else notices."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import algoperf
from algoperf import compatibility, jax_sharding_utils, spec
from algoperf.errors import UserError
from algoperf.loading import load_submission

FUNCTIONS = """
def get_batch_size(workload_name): return 32
def init_optimizer_state(*a): return None
def update_params(*, optimizer_state, current_param_container, model_state, **_):
    return optimizer_state, current_param_container, model_state
def data_selection(workload, input_queue, *a): return next(input_queue)
"""


@pytest.fixture
def load(tmp_path):
    """Writes files and loads one of them."""

    def load(text, main="submission.py", name="loaded", **files):
        for file, content in {main: text, **files}.items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return compatibility.load(tmp_path / main, name)

    return load


@pytest.mark.parametrize(
    "text",
    [
        "from algorithmic_efficiency import spec",
        "from algoperf import spec",
        "import algorithmic_efficiency.spec as spec",
        "import algorithmic_efficiency\nspec = algorithmic_efficiency.spec",
        "from algorithmic_efficiency import spec as spec, jax_sharding_utils",
        "def f():\n from algorithmic_efficiency import spec\n return spec\nspec = f()",
    ],
)
def test_the_names_of_the_official_package_mean_our_modules(load, text):
    assert load(text).module.spec is spec
    assert "algorithmic_efficiency" not in sys.modules


def test_names_within_a_module_and_a_module_that_was_renamed(load):
    module = load(
        "from algorithmic_efficiency.spec import LossType, ForwardPassMode as Mode\n"
        "from algorithmic_efficiency import spec, sharding_utils\n"
        "from algoperf.sharding_utils import get_mesh\n"
    ).module
    assert module.LossType is spec.LossType
    assert module.Mode is spec.ForwardPassMode
    assert module.sharding_utils is jax_sharding_utils
    assert module.get_mesh is jax_sharding_utils.get_mesh
    assert not hasattr(algoperf, "sharding_utils")


OLDER = """
import jax
import jax.numpy as jnp
from jax import lax, tree_util
from jax import tree_map as mapped
from jax.numpy import clip

def doubled(tree): return jax.tree_map(lambda x: 2 * x, tree)
def leaves(tree):
    import jax
    return jax.tree_leaves(tree)
def limited(x): return jnp.clip(x, a_min=-1, a_max=2), clip(x, a_max=0), jnp.clip(x, 0)
"""


def test_functions_that_jax_took_away_are_there_for_the_submission_alone(load):
    module = load(OLDER).module
    tree = {"a": jnp.arange(3), "b": (jnp.ones(2),)}
    expected = jax.tree.map(lambda x: 2 * x, tree)
    assert jax.tree.all(jax.tree.map(np.array_equal, module.doubled(tree), expected))
    assert module.mapped is jax.tree_util.tree_map
    assert len(module.leaves(tree)) == 2
    x = np.linspace(-3, 3, 7)
    both, above, below = module.limited(x)
    np.testing.assert_allclose(both, np.clip(x, -1, 2))
    np.testing.assert_allclose(above, np.minimum(x, 0))
    np.testing.assert_allclose(below, np.maximum(x, 0))
    assert module.lax is jax.lax
    assert module.tree_util is jax.tree_util
    assert module.jnp.float32 is jnp.float32
    assert not hasattr(jax, "tree_map")
    with pytest.raises(TypeError):
        jnp.clip(x, a_min=0)


def test_a_submission_without_older_names_gets_jax_itself(load):
    module = load("import jax\nimport jax.numpy as jnp\n").module
    assert module.jax is jax
    assert module.jnp is jnp


def test_files_beside_a_submission_are_its_own(load, tmp_path):
    text = (
        "from helper import NAME\nimport parts.inner as inner\nfrom . import helper\n"
    )
    text += "from .parts.inner import deeper\n"
    path_before, modules_before = list(sys.path), set(sys.modules)
    modules = [
        load(
            text,
            main=f"{name}/submission.py",
            name=name,
            **{
                f"{name}/helper.py": f"NAME = {name!r}",
                f"{name}/parts/inner.py": "from . import deeper\nfrom .. import helper",
                f"{name}/parts/deeper.py": "",
            },
        ).module
        for name in ("one", "two")
    ]
    assert [module.NAME for module in modules] == ["one", "two"]
    for module in modules:
        assert module.inner.helper is module.helper
        assert module.inner.deeper is module.deeper
        assert module.helper.__file__.startswith(str(tmp_path))
    assert sys.path == path_before
    new = {name.partition(".")[0] for name in set(sys.modules) - modules_before}
    assert new <= {"one", "two"}


def test_folders_above_are_a_checkout_of_the_official_repository(load):
    module = load(
        "from reference_algorithms.base import schedules\n"
        "from reference_algorithms.base.steps import step as make_step\n"
        "import reference_algorithms.base.steps as steps\n",
        main="reference_algorithms/mine/jax/submission.py",
        **{
            "reference_algorithms/base/__init__.py": "",
            "reference_algorithms/base/schedules.py": "import jax\njax.tree_map",
            "reference_algorithms/base/steps.py": "def step(): return jax.pmap",
        },
    )
    assert load(
        "from submissions.external.mine.rule import rule",  # in a package of ours too
        main="submissions/external/mine/submission.py",
        **{"submissions/external/mine/rule.py": "rule = 1"},
    ).module.rule
    assert module.uses_pmap  # a module that it imports does
    assert module.module.steps.step is module.module.make_step
    assert "reference_algorithms" not in sys.modules


@pytest.mark.parametrize(
    ("text", "uses_pmap"),
    [
        ("import jax\nstep = jax.pmap(lambda x: x)", True),
        ("from jax import pmap as p", True),
        ("import jax\n# jax.pmap is gone\n'''jax.pmap'''", False),
    ],
)
def test_code_that_names_pmap_is_in_its_layout(load, text, uses_pmap):
    assert load(text).uses_pmap == uses_pmap


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torch\nfrom algoperf import spec", "PyTorch; AlgoPerf runs JAX"),
        ("from torch import nn", "PyTorch"),
        ("import no_such_module.inner", "imports no_such_module.*pip install no_such"),
        ("from .nowhere import x", "imports nowhere.*put its file there"),
        (
            "from algorithmic_efficiency.pytorch_utils import pytorch_setup",
            "imports pytorch_utils of the official package.*it has spec",
        ),
        ("from algoperf import interop_utils", "imports interop_utils of the official"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, text, says):
    path = tmp_path / "submission.py"
    path.write_text(text + FUNCTIONS)
    with pytest.raises(UserError, match=says) as caught:
        load_submission(path)
    assert "\n" not in str(caught.value)


def test_a_package_that_may_be_missing_may_be_missing(load):
    text = "try:\n    import no_such_module\nexcept ImportError:\n    found = False\n"
    assert load(text).module.found is False


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="PyTorch is installed"
)
def test_a_helper_may_import_torch_as_long_as_it_is_not_called(load):
    module = load(
        "import jax\nfrom schedules import of_jax, of_torch",
        **{
            "schedules.py": "from torch.optim.lr_scheduler import LinearLR\n"
            "import torch.nn as nn\nimport torch\n"
            "def of_jax(): return 1\n"
            "def of_torch(): return LinearLR(nn.Module, torch.tensor)"
        },
    ).module
    assert module.of_jax() == 1
    with pytest.raises(UserError, match=r"torch\.optim\.lr_scheduler\.LinearLR"):
        module.of_torch()


def test_an_error_in_a_helper_is_not_hidden_and_leaves_nothing(load):
    with pytest.raises(ZeroDivisionError):
        load("import bad", name="failing", **{"bad.py": "1 / 0"})
    assert not [name for name in sys.modules if name.startswith("failing")]
