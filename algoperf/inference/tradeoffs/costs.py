"""From seconds to dollars, energy and devices; FLOPs and bytes of a shape. Arithmetic.

FLOPs count a multiply-add as two. Scores of tokens that a causal mask hides are
counted, since compiled attention computes them.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from algoperf.errors import UserError
from algoperf.inference.models.shapes import DecoderShape
from algoperf.inference.timing.runtime import RuntimeModel

SECONDS_PER_HOUR = 3600.0
# What a data centre draws for each watt of its devices; HELM's.
POWER_USAGE_EFFECTIVENESS = 1.1


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What a device holds, costs and draws.

    Attributes:
      name: of the device.
      memory_bytes: for weights and cache.
      dollars_per_hour: price of one device.
      watts: drawn by one device at work.
      peak_flops: per second, of the products' type; None: unknown.
      bytes_per_second: memory bandwidth; None: unknown.
    """

    name: str
    memory_bytes: float
    dollars_per_hour: float
    watts: float
    peak_flops: float | None = None
    bytes_per_second: float | None = None


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to serve a model: so many devices, so many requests at once.

    Attributes:
      runtime: of a whole batch.
      accelerators: devices that work on it together.
      batch_size: requests of a batch.
    """

    runtime: RuntimeModel
    accelerators: int = 1
    batch_size: int = 1

    def seconds_per_request(self, prompt: int, output: int) -> float:
        """Returns device-group seconds that a request takes up: T / batch size."""
        return self.runtime.predict(prompt, output) / self.batch_size

    def tokens_per_second(self, prompt: int, output: int) -> float:
        """Returns output tokens per second of all requests together."""
        return output / self.seconds_per_request(prompt, output)

    def dollars(self, prompt: int, output: int, dollars_per_hour: float) -> float:
        """Returns the price of a request: T x devices x price / batch size."""
        hours = self.seconds_per_request(prompt, output) / SECONDS_PER_HOUR
        return hours * self.accelerators * dollars_per_hour

    def joules(
        self,
        prompt: int,
        output: int,
        watts: float,
        effectiveness: float = POWER_USAGE_EFFECTIVENESS,
    ) -> float:
        """Returns the energy of a request: T x devices x watts x PUE / batch size."""
        seconds = self.seconds_per_request(prompt, output)
        return seconds * self.accelerators * watts * effectiveness


def cheapest(
    options: Iterable[Option],
    prompt: int,
    output: int,
    latency_limit: float = math.inf,
) -> Option:
    """Returns the option with the fewest device-seconds per request.

    The cost-aware number of devices: more of them are faster, but seldom in proportion.

    Args:
      options: to choose from; of equals, the first.
      prompt: tokens of a request.
      output: tokens of a request.
      latency_limit: seconds that a batch may take.

    Raises:
      UserError: none is within the limit.
    """
    found = list(options)
    allowed = [o for o in found if o.runtime.predict(prompt, output) <= latency_limit]
    if not allowed:
        raise UserError(
            f"none of {len(found)} options answers {prompt} + {output} tokens within "
            f"{latency_limit:g} s; allow more or measure more devices"
        )
    return min(
        allowed, key=lambda o: o.accelerators * o.seconds_per_request(prompt, output)
    )


def fewest_accelerators(needed_bytes: float, memory_bytes: float) -> int:
    """Returns the fewest devices that hold so many bytes, a power of two.

    Tensor parallelism divides heads, so other numbers seldom work.
    """
    if not memory_bytes > 0:
        raise UserError(f"a device with {memory_bytes} bytes of memory holds nothing")
    devices = 1
    while devices * memory_bytes < needed_bytes:
        devices *= 2
    return devices


def weight_bytes(shape: DecoderShape, element_bytes: float = 2) -> float:
    """Returns bytes of all parameters."""
    return shape.num_parameters * element_bytes


def serving_bytes(
    shape: DecoderShape, tokens: int, batch_size: int = 1, element_bytes: int = 2
) -> float:
    """Returns bytes of weights and of the cache of `batch_size` requests."""
    cache = batch_size * shape.cache_bytes(tokens, element_bytes)
    return weight_bytes(shape, element_bytes) + cache


def token_bytes(
    shape: DecoderShape, context: int, batch_size: int = 1, element_bytes: int = 2
) -> float:
    """Returns bytes that one decoding step must read: weights and cache, once.

    Args:
      shape: the model's.
      context: tokens that the cache holds (its capacity, where all of it is read).
      batch_size: requests that share the weights' reading.
      element_bytes: of weights and cache.
    """
    cache = batch_size * shape.cache_bytes(context, element_bytes)
    return shape.num_active_parameters * element_bytes + cache


def block_products(shape: DecoderShape) -> int:
    """Returns multiply-adds of a token in one block's products with weights."""
    attention = shape.width * shape.head_width * (2 * shape.num_heads)  # query and out
    attention += shape.width * shape.head_width * (2 * shape.kv_heads)
    return attention + (2 + shape.is_gated) * shape.width * shape.mlp_width


def prompt_flops(shape: DecoderShape, prompt: int) -> float:
    """Returns FLOPs of reading a prompt, logits of its last token included.

    2 l p (products of a block) + 4 l p^2 H K for scores and mixing + 2 D V: for a plain
    MLP of width 4 D and as many heads of keys, 24 p l D^2 + 4 p^2 l D + 2 D V.
    """
    layers, mixed = shape.num_layers, shape.num_heads * shape.head_width
    products = 2 * prompt * layers * block_products(shape)
    attention = 4 * layers * prompt**2 * mixed
    return products + attention + 2 * shape.width * shape.vocab_size


def token_flops(shape: DecoderShape, context: int) -> float:
    """Returns FLOPs of decoding one token that attends to `context` tokens."""
    layers, mixed = shape.num_layers, shape.num_heads * shape.head_width
    products = 2 * layers * block_products(shape)
    return products + 4 * layers * context * mixed + 2 * shape.width * shape.vocab_size


def paper_prompt_flops(prompt: int, width: int, layers: int, vocab_size: int) -> float:
    """Returns FLOPs of a prompt as the paper's code counts them.

    24 p h^2 l (1 + p / (6 h) + V / (16 l h)): logits of every position, of which it
    counts 1.5 p h V instead of 2 p h V (arXiv:2305.02440, released notebook).
    """
    share = 1 + prompt / (6 * width) + vocab_size / (16 * layers * width)
    return 24 * prompt * width**2 * layers * share


def utilisation(
    runtime: RuntimeModel,
    shape: DecoderShape,
    accelerator: Accelerator,
    prompt: int,
    accelerators: int = 1,
    element_bytes: int = 2,
) -> dict[str, float]:
    """Returns shares of the peak rates: 'compute' of prefill, 'bandwidth' of decoding.

    Args:
      runtime: at batch size 1.
      shape: the model's.
      accelerator: with both rates.
      prompt: tokens, for prefill and as the context of decoding.
      accelerators: devices that share the work.
      element_bytes: of weights and cache.

    Raises:
      UserError: a rate is unknown.
    """
    if accelerator.peak_flops is None or accelerator.bytes_per_second is None:
        raise UserError(f"give the peak rates of {accelerator.name}")
    reading = prompt_flops(shape, prompt) / runtime.prompt_seconds(prompt)
    moved = token_bytes(shape, prompt, element_bytes=element_bytes)
    decoding = moved / runtime.token_seconds(prompt)
    return {
        "compute": reading / (accelerators * accelerator.peak_flops),
        "bandwidth": decoding / (accelerators * accelerator.bytes_per_second),
    }


def training_energy_mwh(
    devices: int,
    watts: float,
    hours: float,
    effectiveness: float = POWER_USAGE_EFFECTIVENESS,
) -> float:
    """Returns MWh of a training run: devices x watts x hours x PUE / 10^6 (HELM)."""
    return devices * watts * hours * effectiveness / 1e6


def request_costs(
    option: Option, accelerator: Accelerator, prompt: int, output: int
) -> dict[str, Any]:
    """Returns seconds, dollars, joules and tokens per second of a request."""
    return {
        "seconds": option.runtime.predict(prompt, output),
        "dollars": option.dollars(prompt, output, accelerator.dollars_per_hour),
        "joules": option.joules(prompt, output, accelerator.watts),
        "tokens_per_second": option.tokens_per_second(prompt, output),
    }
