"""Time per token of the decoder, beside Hugging Face transformers where installed.

    python tests/benchmarks/inference_decoder.py [--shapes tiny-4m,small-30m]
        [--prompt 128] [--tokens 33] [--rounds 8] [--json FILE]

Both have the same weights, one thread on one core, and take turns; process time of the
medians, (T(p, o) - T(p, 1)) / (o - 1). Hugging Face runs eagerly, with its own cache.
Shapes must be of the GPT-2 family.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measures shape by shape, prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="tiny-4m,small-30m")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before any thread starts
    found = {}
    for name in arguments.shapes.split(","):
        found[name] = compared(
            name, arguments.prompt, arguments.tokens, arguments.rounds
        )
        texts = [f"{who} {1e3 * s:.3f} ms" for who, s in found[name].items()]
        print(f"{name}, after {arguments.prompt} tokens: {', '.join(texts)} a token")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def compared(name: str, prompt: int, tokens: int, rounds: int) -> dict[str, float]:
    """Returns seconds a token, by who took them."""
    import jax

    from algoperf.inference.models import decoder
    from algoperf.inference.models.shapes import find_shape
    from algoperf.inference.timing import measure

    shape = find_shape(name)
    params = decoder.init_params(shape, jax.random.key(0))
    timers = {
        "ours": measure.decoder_measure(shape, params, clock=time.process_time),
        # What a cache for the longest request would cost.
        "ours, full cache": measure.decoder_measure(
            shape, params, clock=time.process_time, capacity=shape.max_length
        ),
    }
    theirs = _hugging_face(shape, params)
    if theirs is not None:
        timers["transformers"] = theirs
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for who, timer in timers.items():
            for output in (1, tokens):
                seconds = timer(prompt, output)
                if number:  # the first warms up
                    times.setdefault((who, output), []).append(seconds)
    middle = {key: statistics.median(found) for key, found in times.items()}
    return {
        who: (middle[who, tokens] - middle[who, 1]) / (tokens - 1) for who in timers
    }


def _hugging_face(shape, params):
    """Returns a timer as ours, or None where transformers is not installed."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError:
        return None
    sys.path.insert(0, str(HERE.parent / "helpers"))
    import hf_reference

    torch.set_num_threads(1)
    model = hf_reference.gpt2(shape, params)

    def timer(prompt: int, output: int) -> float:
        ids = torch.ones((1, prompt), dtype=torch.long)
        start = time.process_time()
        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=output,
                max_new_tokens=output,
                do_sample=False,
                pad_token_id=0,
            )
        return time.process_time() - start

    return timer


if __name__ == "__main__":
    main()
