"""What a workload may tell of its data beyond batches: domains, and probes.

Both are optional: a study asks for them with `isinstance(workload, HasDomains)`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Kind = Literal["knowledge", "rule"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Questions with two answers; a model's is the one that it finds likelier.

    Attributes:
      kind: 'knowledge' asks what the training data say and nothing else would tell,
        'rule' what follows from a pattern, on data that were not trained on.
      right: a batch of N examples as evaluation has them ('inputs', 'targets',
        'weights'); weights are 1 on the answer and 0 on all else.
      wrong: the same with the other answers.
    """

    kind: Kind
    right: Mapping[str, np.ndarray]
    wrong: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """How many questions."""
        return len(self.right["inputs"])


@runtime_checkable
class HasDomains(Protocol):
    """A workload whose data fall into domains."""

    def by_domain(self) -> Mapping[str, Any]:
        """Returns the workload on each domain's data alone; the first is the public."""


@runtime_checkable
class HasProbes(Protocol):
    """A workload that comes with tests of what its models can do."""

    def probes(self) -> Mapping[str, Probe]:
        """Returns the tests by name."""
