"""LibriSpeech by a Conformer (MLCommons AlgoPerf workload librispeech_conformer)."""

import flax.linen as nn
import jax.numpy as jnp

from algoperf import spec
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.common.speech import librispeech, spoken_words
from workloads.common.speech.recognition import SpeechRecognition
from workloads.librispeech_conformer.model import Conformer

FULL = SpeechRecognition(
    base_workload="librispeech_conformer",
    variant="librispeech_conformer",
    scale="full",
    model=Conformer(),
    vocabulary=librispeech.load_vocabulary,
    pipeline=librispeech.pipeline,
    data_source=librispeech.DATA_SOURCE,
    input_shape=(librispeech.MAX_SAMPLES,),
    input_dtype=jnp.int16,
    loss_type=spec.LossType.CTC_LOSS,
    target_metric_name="wer",
    official_metric_name="official_wer",
    target_direction=Direction.MINIMIZE,
    validation_target_value=0.085884,
    test_target_value=0.052981,
    num_train_examples=librispeech.NUM_TRAIN,
    num_eval_train_examples=librispeech.NUM_EVAL_TRAIN,
    num_validation_examples=librispeech.NUM_VALIDATION,
    num_test_examples=librispeech.NUM_TEST,
    default_batch_size=256,
    eval_batch_size=256,
    step_hint=76_000,
    eval_period_time_sec=1_440.0,
    max_allowed_runtime_sec=58_015.0,
    published_budgets_sec={"0.5": 61_068.0, "0.6": 58_015.0},
    published_step_sec={"8x A100": 0.599},
    default_dropout_rate=0.1,
    output_params=("head",),
)

MINI = SpeechRecognition(
    base_workload="librispeech_conformer",
    variant="librispeech_conformer",
    scale="mini",
    model=Conformer(
        vocab_size=spoken_words.VOCAB_SIZE,
        width=48,
        num_layers=2,
        num_heads=4,
        kernel_size=9,
        frequency_masks=1,
        time_masks=2,
        max_mask_bins=5,
        batch_norm_momentum=0.95,
        features=spoken_words.LOG_MEL,
    ),
    vocabulary=spoken_words.load_vocabulary,
    pipeline=spoken_words.dataset,
    input_shape=(spoken_words.MAX_SAMPLES,),
    input_dtype=jnp.int16,
    loss_type=spec.LossType.CTC_LOSS,
    target_metric_name="wer",
    official_metric_name="official_wer",
    target_direction=Direction.MINIMIZE,
    validation_target_value=0.2191,
    test_target_value=0.1958,
    num_train_examples=spoken_words.NUM_TRAIN,
    num_eval_train_examples=spoken_words.NUM_EVAL_TRAIN,
    num_validation_examples=spoken_words.NUM_VALIDATION,
    num_test_examples=spoken_words.NUM_TEST,
    default_batch_size=8,
    max_batch_size=32,
    eval_batch_size=32,
    step_hint=2880,
    eval_period_steps=180,
    max_allowed_runtime_sec=60.0,
    output_params=("head",),
)

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(
        FULL,
        "librispeech_conformer_attention_temperature",
        (0.109977, 0.068065),
        attention_temperature=1.6,
    ),
    variant(
        FULL,
        "librispeech_conformer_layernorm",
        (0.09731, 0.05996),
        post_layer_norm=False,
    ),
    variant(
        FULL, "librispeech_conformer_gelu", (0.094114, 0.056629), activation=nn.gelu
    ),
    MINI,
    variant(
        MINI,
        "librispeech_conformer_attention_temperature",
        (0.2624, 0.2383),
        attention_temperature=1.6,
    ),
    variant(
        MINI, "librispeech_conformer_layernorm", (0.1986, 0.1703), post_layer_norm=False
    ),
    variant(MINI, "librispeech_conformer_gelu", (0.207, 0.1958), activation=nn.gelu),
)
