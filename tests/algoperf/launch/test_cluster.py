"""The file that says what a cluster has."""

import json

import pytest

from algoperf.errors import UserError
from algoperf.launch import cluster


def load(tmp_path, content):
    path = tmp_path / "cluster.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return cluster.load(path)


def test_types_and_who_takes_what(tmp_path):
    types = load(
        tmp_path,
        {
            "a100": {"workloads": ["imagenet_*", "wmt"], "gpus": 8},
            "rest": {"slurm": {"options": {"nice": "5"}, "setup": ["x"]}},
        },
    )
    assert cluster.choose(types, "imagenet_vit").name == "a100"
    assert cluster.choose(types, "wmt_mini").name == "rest"
    assert types[0].slurm.exclusive
    assert types[1].slurm.setup == ("x",)
    with pytest.raises(UserError, match="takes wmt_mini"):
        cluster.choose(types[:1], "wmt_mini")


def test_without_a_file_there_is_one_type():
    assert cluster.choose(cluster.load(None), "anything").gpus == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ([], "must hold an object"),
        ({}, "must hold an object"),
        ({"A 1": {}}, "is no name"),
        ({"a": 1}, "a must be an object"),
        ({"a": {"gpu": 1}}, "did you mean gpus"),
        ({"a": {"slurm": {"part": "x"}}}, "did you mean partition"),
        ({"a": {"gpus": "8"}}, "gpus must be a whole number"),
        ({"a": {"gpus": True}}, "gpus must be a whole number"),
        ({"a": {"gpus": -1}}, "gpus must be a whole number"),
        ({"a": {"workloads": "wmt"}}, "workloads must be a list of strings"),
        ({"a": {"slurm": {"exclusive": 1}}}, "must be true or false"),
        ({"a": {"slurm": {"options": {"nice": 5}}}}, "must be an object of strings"),
        ({"a": {"kubernetes": {"image": 1}}}, "image must be a string"),
        ({"a": {"gpus": 1, "tpus": 1}}, "not both"),
        ({"a": {"tpus": 4}}, "tpus need tpu_type"),
    ],
)
def test_mistakes_are_one_line(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as raised:
        load(tmp_path, content)
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        cluster.load(tmp_path / "none.json")
