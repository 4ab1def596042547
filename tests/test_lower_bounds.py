"""The oldest packages: every one that is needed has a lower bound."""

import tomllib

import lower_bounds
import pytest


def test_every_requirement_has_a_lower_bound():
    project = tomllib.loads(lower_bounds.PROJECT.read_text())["project"]
    extras = ["core", *project["optional-dependencies"]]
    found = lower_bounds.constraints(project, extras)
    names = [line.split("==")[0] for line in found]
    assert {"jax", "optax", "pyarrow", "matplotlib", "pytest"} <= set(names)
    assert "algoperf" not in names


def test_constraints_of_what_is_asked_for():
    project = {
        "name": "mine",
        "dependencies": ["jax>=0.10", "numpy>=2.2; python_version > '3'"],
        "optional-dependencies": {
            "cuda": ["jax[cuda13]>=0.10.1"],
            "dev": ["mine[cuda]", "pytest>=8"],
        },
    }
    oldest = lower_bounds.constraints(project, ["core", "dev"])
    assert oldest == ["jax==0.10", "numpy==2.2", "pytest==8"]
    assert lower_bounds.constraints(project, ["cuda"]) == ["jax==0.10.1"]
    project["dependencies"].append("flax")
    with pytest.raises(ValueError, match="flax has no lower bound"):
        lower_bounds.constraints(project, ["core"])
