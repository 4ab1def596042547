"""Logits of the tiny decoders in Hugging Face transformers, with the same weights.

    python hf_reference.py

writes `hf_logits.json` beside this file; it needs torch and transformers. What it
writes is what `test_hugging_face.py` compares with, where they are not installed.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("hf_logits.json")
LENGTH = 9
BATCH = 2


def hf_logits(shape, params, tokens):
    """Returns logits (B, T, V) of the model's counterpart on PyTorch."""
    import torch

    model = _MODELS[shape.name](shape, params)
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy()


def _load(model, weights):
    """Loads weights; all must be there but masks and tied copies."""
    import torch

    state = {name: torch.tensor(np.asarray(w)) for name, w in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    allowed = [".attn.bias", "masked_bias", "inv_freq"]
    if model.config.tie_word_embeddings:
        allowed.append("lm_head.weight")
    assert all(name.endswith(tuple(allowed)) for name in missing), missing
    model.tie_weights()
    return model.eval()


def _norm(name, params):
    renamed = {"scale": "weight", "bias": "bias"}
    return {f"{name}.{renamed[key]}": value for key, value in params.items()}


def _linear(name, params):
    found = {f"{name}.weight": params["kernel"].T}
    return found | ({f"{name}.bias": params["bias"]} if "bias" in params else {})


def gpt2(shape, params):
    """Returns the model on PyTorch, with these weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.max_length,
        n_embd=shape.width,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_inner=shape.mlp_width,
        attn_implementation="eager",
    )
    weights = {
        "transformer.wte.weight": params["embedding"],
        "transformer.wpe.weight": params["positions"],
        **_norm("transformer.ln_f", params["final_norm"]),
    }
    for i, layer in enumerate(params["layers"]):
        at = f"transformer.h.{i}"
        weights |= _norm(f"{at}.ln_1", layer["attention_norm"])
        weights |= _norm(f"{at}.ln_2", layer["mlp_norm"])
        parts = [layer[name] for name in ("query", "key", "value")]
        # Its Conv1D keeps kernels as (in, out).
        for name, kind in (("weight", "kernel"), ("bias", "bias")):
            fused = np.concatenate([part[kind] for part in parts], axis=-1)
            weights[f"{at}.attn.c_attn.{name}"] = fused
            weights[f"{at}.attn.c_proj.{name}"] = layer["out"][kind]
            weights[f"{at}.mlp.c_fc.{name}"] = layer["up"][kind]
            weights[f"{at}.mlp.c_proj.{name}"] = layer["down"][kind]
    return _load(GPT2LMHeadModel(config), weights)


def _llama_weights(params):
    weights = {
        "model.embed_tokens.weight": params["embedding"],
        **_norm("model.norm", params["final_norm"]),
    }
    if "head" in params:
        weights |= _linear("lm_head", params["head"])
    for i, layer in enumerate(params["layers"]):
        at = f"model.layers.{i}"
        weights |= _norm(f"{at}.input_layernorm", layer["attention_norm"])
        weights |= _norm(f"{at}.post_attention_layernorm", layer["mlp_norm"])
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            weights |= _linear(f"{at}.self_attn.{theirs}_proj", layer[ours])
        weights |= _linear(f"{at}.self_attn.o_proj", layer["out"])
        for name in ("gate", "up", "down"):
            weights |= _linear(f"{at}.mlp.{name}_proj", layer[name])
        if "query_norm" in layer:
            weights |= _norm(f"{at}.self_attn.q_norm", layer["query_norm"])
            weights |= _norm(f"{at}.self_attn.k_norm", layer["key_norm"])
    return weights


def _llama_facts(shape, **rope):
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.max_length,
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": shape.ties_head,
        "rope_parameters": {"rope_theta": shape.rotary_theta, **rope},
        "attn_implementation": "eager",
    }


def _llama(shape, params):
    from transformers import LlamaConfig, LlamaForCausalLM

    scaling = shape.rotary_scaling
    rope = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_factor,
        "high_freq_factor": scaling.high_factor,
        "original_max_position_embeddings": scaling.original_length,
    }
    config = LlamaConfig(**_llama_facts(shape, **rope))
    return _load(LlamaForCausalLM(config), _llama_weights(params))


def _qwen3(shape, params):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**_llama_facts(shape, rope_type="default"))
    return _load(Qwen3ForCausalLM(config), _llama_weights(params))


def _gptj(shape, params):
    from transformers import GPTJConfig, GPTJForCausalLM

    config = GPTJConfig(
        vocab_size=shape.vocab_size,
        n_positions=shape.max_length,
        n_embd=shape.width,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_inner=shape.mlp_width,
        rotary_dim=shape.rotary_size,
        attn_implementation="eager",
    )
    weights = {
        "transformer.wte.weight": params["embedding"],
        **_norm("transformer.ln_f", params["final_norm"]),
        **_linear("lm_head", params["head"]),
    }
    for i, layer in enumerate(params["layers"]):
        at = f"transformer.h.{i}"
        weights |= _norm(f"{at}.ln_1", layer["attention_norm"])
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            weights |= _linear(f"{at}.attn.{theirs}_proj", layer[ours])
        weights |= _linear(f"{at}.attn.out_proj", layer["out"])
        weights |= _linear(f"{at}.mlp.fc_in", layer["up"])
        weights |= _linear(f"{at}.mlp.fc_out", layer["down"])
    return _load(GPTJForCausalLM(config), weights)


def _neox(shape, params):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    size = shape.head_width
    share = shape.rotary_size / size
    config = GPTNeoXConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.mlp_width,
        max_position_embeddings=shape.max_length,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": shape.rotary_theta,
            "partial_rotary_factor": share,
        },
        hidden_act="gelu",
        attn_implementation="eager",
    )
    weights = {
        "gpt_neox.embed_in.weight": params["embedding"],
        **_norm("gpt_neox.final_layer_norm", params["final_norm"]),
        "embed_out.weight": params["head"]["kernel"].T,
    }
    for i, layer in enumerate(params["layers"]):
        at = f"gpt_neox.layers.{i}"
        weights |= _norm(f"{at}.input_layernorm", layer["attention_norm"])
        weights |= _norm(f"{at}.post_attention_layernorm", layer["mlp_norm"])
        # Fused head by head: query, key, value of one head are neighbours.
        parts = [layer[name] for name in ("query", "key", "value")]
        for name, kind in (("weight", "kernel"), ("bias", "bias")):
            split = [p[kind].reshape(*p[kind].shape[:-1], -1, size) for p in parts]
            fused = np.stack(split, axis=-2)
            fused = fused.reshape(*fused.shape[:-3], -1)
            weights[f"{at}.attention.query_key_value.{name}"] = fused.T
        weights |= _linear(f"{at}.attention.dense", layer["out"])
        weights |= _linear(f"{at}.mlp.dense_h_to_4h", layer["up"])
        weights |= _linear(f"{at}.mlp.dense_4h_to_h", layer["down"])
    model = GPTNeoXForCausalLM(config)
    if "embed_out.weight" not in model.state_dict():  # its name since version 5
        weights["lm_head.weight"] = weights.pop("embed_out.weight")
    return _load(model, weights)


_MODELS = {
    "like gpt2": gpt2,
    "like llama": _llama,
    "like qwen3": _qwen3,
    "like gpt-j": _gptj,
    "like neox": _neox,
}


def main():
    import transformers
    from decoders import SHAPES, drawn_params, drawn_tokens

    logits = {}
    for name, shape in SHAPES.items():
        tokens = drawn_tokens(shape, BATCH, LENGTH)
        found = hf_logits(shape, drawn_params(shape), tokens)[:, -1]
        logits[name] = [[round(float(x), 6) for x in row] for row in found]
    facts = {"transformers": transformers.__version__, "logits": logits}
    FILE.write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
