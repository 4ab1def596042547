"""Small translation models, sentences for them, and what their tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from workloads.wmt import data
from workloads.wmt.workload import FULL, WORKLOADS

FULL_SIZE = [w for w in WORKLOADS if w.scale == "full"]

KEY = jax.random.PRNGKey(0)
SMALL = {
    "vocab_size": 11,
    "num_layers": 2,
    "width": 16,
    "num_heads": 2,
    "mlp_width": 12,
    "max_length": 8,
}
VARIANTS = {w.variant.removeprefix("wmt_"): w for w in FULL_SIZE}


def small(workload=FULL):
    return workload.model.clone(**SMALL)


def random_params(model, key=KEY):
    """Parameters far from their initial values, zeros among them."""
    ids = jnp.ones((1, 4), jnp.int32)
    params = model.init({"params": key}, ids, ids, train=False)["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    noise = [0.4 * rng.standard_normal(leaf.shape).astype("f4") for leaf in leaves]
    return jax.tree.unflatten(tree, noise)


def sentences(rng, rows, length, vocab_size=11):
    """Ids (rows, length) of sentences of different lengths, each with its end."""
    ids = rng.integers(3, vocab_size, (rows, length))
    ends = rng.integers(1, length, rows)
    ids[np.arange(rows), ends] = data.END
    ids[np.arange(length) > ends[:, None]] = data.PAD
    return ids.astype(np.int32)


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())
