"""Training algorithms that only studies need: AdamW on something small.

They are submissions like others, but made here and not read from a file; they take the
hyperparameters of `adamw`.
"""

import hashlib
from pathlib import Path
from typing import Any

import optax

from algoperf import spec
from algoperf.loading import Submission
from algoperf.reparam import federated, narrow
from algoperf.submission import from_optax, standard_chain


def narrow_network() -> Submission:
    """Returns AdamW on a network with a share of the channels.

    The hyperparameter `compression` says how many times fewer weights its kernels have.
    """

    def reparametrise(workload: spec.Workload, hyperparameters: Any) -> Any:
        share = narrow.share_for(workload, hyperparameters.compression)
        return narrow.narrow_channels(workload, share)

    return _submission("narrow", reparametrise)


def expert(name: str, public: Any) -> Submission:
    """Returns AdamW on the MLPs of a copy of a public model.

    Args:
      name: of the submission, in records.
      public: params that training starts from.
    """

    def reparametrise(workload: spec.Workload, hyperparameters: Any) -> Any:
        del workload, hyperparameters
        return federated.train_mlps(public)

    return _submission(name, reparametrise)


def _submission(name: str, reparametrise: Any) -> Submission:
    path = Path(__file__)
    return Submission(
        name=name,
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        functions=from_optax(_adamw, reparametrise=reparametrise),
        wants_train_state=False,
    )


def _adamw(workload: spec.Workload, hyperparameters: Any) -> Any:
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    return standard_chain(workload, hyperparameters, adam)
