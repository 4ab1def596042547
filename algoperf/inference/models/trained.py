"""A trained language model, served: from its workload's parameters to the decoder's.

Nothing is copied but the fused products, which are split. The model is read, not
imported: whatever has these fields and this tree can be served.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.models.shapes import DecoderShape

_NORM_EPSILON = 1e-6
_FIELDS = ("vocab_size", "num_layers", "width", "num_heads", "mlp_width", "max_length")


def trained_shape(name: str, model: Any) -> DecoderShape:
    """Returns the shape of the language-model workload's Flax module.

    Args:
      name: what to call it.
      model: with fields vocab_size, num_layers, width, num_heads, mlp_width,
        max_length, rope_theta and activation.

    Raises:
      UserError: the model is no decoder of this kind.
    """
    missing = [field for field in (*_FIELDS, "rope_theta") if not hasattr(model, field)]
    if missing:
        raise UserError(
            f"{name} is no decoder-only language model (it has no {missing[0]}); "
            "finewebedu_lm is one"
        )
    return DecoderShape(
        name=name,
        **{field: getattr(model, field) for field in _FIELDS},
        rotary_theta=model.rope_theta,
        norm="rms",
        norm_epsilon=_NORM_EPSILON,
        query_key_norm="unit",
        activation=_activation_name(model),
        is_gated=True,
        ties_head=True,
    )


def trained_params(
    shape: DecoderShape, params: Mapping[str, Any], dtype: Any = None
) -> dict[str, Any]:
    """Returns the workload's parameters as the decoder's tree.

    Args:
      shape: from `trained_shape`.
      params: the trained tree: `embed`, `layer_<i>_attention` (fused `qkv`, `out`,
        `scale`), `layer_<i>_mlp` (fused `fc1`, `fc2`), norms.
      dtype: of the served weights. None: as trained.

    Raises:
      UserError: a parameter is missing or has another size.
    """
    try:
        tree = _tree(shape, params)
    except KeyError as error:
        raise UserError(
            f"the parameters of {shape.name} have no {error.args[0]!r}; were they "
            "trained on another workload?"
        ) from error
    if tree["embedding"].shape != (shape.vocab_size, shape.width):
        raise UserError(
            f"the embedding is {tree['embedding'].shape}, but {shape.name} has "
            f"{(shape.vocab_size, shape.width)}; take the scale it was trained at"
        )
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _tree(shape: DecoderShape, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embedding": jnp.asarray(params["embed"]["embedding"]),
        "layers": [
            _layer(
                params[f"layer_{i}_attention"],
                params[f"layer_{i}_attention_norm"],
                params[f"layer_{i}_mlp"],
                params[f"layer_{i}_mlp_norm"],
            )
            for i in range(shape.num_layers)
        ],
        "final_norm": {"scale": jnp.asarray(params["final_norm"]["scale"])},
    }


def _layer(
    attention: Mapping[str, Any],
    attention_norm: Mapping[str, Any],
    mlp: Mapping[str, Any],
    mlp_norm: Mapping[str, Any],
) -> dict[str, Any]:
    query, key, value = jnp.split(jnp.asarray(attention["qkv"]["kernel"]), 3, axis=1)
    up, gate = jnp.split(jnp.asarray(mlp["fc1"]["kernel"]), 2, axis=1)
    return {
        "attention_norm": {"scale": jnp.asarray(attention_norm["scale"])},
        "attention_scale": jnp.asarray(attention["scale"]),
        "query": {"kernel": query},
        "key": {"kernel": key},
        "value": {"kernel": value},
        "out": {"kernel": jnp.asarray(attention["out"]["kernel"])},
        "mlp_norm": {"scale": jnp.asarray(mlp_norm["scale"])},
        "up": {"kernel": up},
        "gate": {"kernel": gate},
        "down": {"kernel": jnp.asarray(mlp["fc2"]["kernel"])},
    }


def _activation_name(model: Any) -> Any:
    name = getattr(model.activation, "__name__", str(model.activation))
    known = {"sigmoid": "sigmoid", "silu": "silu", "swish": "silu", "gelu": "gelu_tanh"}
    if name not in known:
        raise UserError(
            f"the decoder knows no activation {name!r}; it has: {', '.join(known)}"
        )
    return known[name]
