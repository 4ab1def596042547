"""LibriSpeech by LSTMs (MLCommons AlgoPerf workload librispeech_deepspeech)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from algoperf import spec
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.common.speech import librispeech, spoken_words
from workloads.common.speech.recognition import SpeechRecognition
from workloads.librispeech_deepspeech.model import Deepspeech

FULL = SpeechRecognition(
    base_workload="librispeech_deepspeech",
    variant="librispeech_deepspeech",
    scale="full",
    model=Deepspeech(),
    vocabulary=librispeech.load_vocabulary,
    pipeline=librispeech.pipeline,
    data_source=librispeech.DATA_SOURCE,
    input_shape=(librispeech.MAX_SAMPLES,),
    input_dtype=jnp.int16,
    loss_type=spec.LossType.CTC_LOSS,
    target_metric_name="wer",
    official_metric_name="official_wer",
    target_direction=Direction.MINIMIZE,
    validation_target_value=0.119936,
    test_target_value=0.074143,
    num_train_examples=librispeech.NUM_TRAIN,
    num_eval_train_examples=librispeech.NUM_EVAL_TRAIN,
    num_validation_examples=librispeech.NUM_VALIDATION,
    num_test_examples=librispeech.NUM_TEST,
    default_batch_size=256,
    eval_batch_size=256,
    step_hint=38_400,
    eval_period_time_sec=1_440.0,
    max_allowed_runtime_sec=44_405.0,
    published_budgets_sec={"0.5": 55_506.0, "0.6": 44_405.0},
    published_step_sec={"8x A100": 0.981},
    default_dropout_rate=0.1,
    output_params=("head",),
)
NORM_AND_SPEC_AUGMENT: dict[str, Any] = {
    "layer_norm": True,
    "decoder_layer_norm": False,
    "frequency_masks": 4,
    "time_masks": 15,
}

MINI = SpeechRecognition(
    base_workload="librispeech_deepspeech",
    variant="librispeech_deepspeech",
    scale="mini",
    model=Deepspeech(
        vocab_size=spoken_words.VOCAB_SIZE,
        width=48,
        num_lstm_layers=2,
        num_feed_forward_layers=1,
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
    validation_target_value=0.1998,
    test_target_value=0.1788,
    num_train_examples=spoken_words.NUM_TRAIN,
    num_eval_train_examples=spoken_words.NUM_EVAL_TRAIN,
    num_validation_examples=spoken_words.NUM_VALIDATION,
    num_test_examples=spoken_words.NUM_TEST,
    default_batch_size=16,
    max_batch_size=32,
    eval_batch_size=32,
    step_hint=2400,
    eval_period_steps=150,
    max_allowed_runtime_sec=57.0,
    output_params=("head",),
)
MINI_NORM_AND_SPEC_AUGMENT = {
    **NORM_AND_SPEC_AUGMENT,
    "frequency_masks": 2,
    "time_masks": 3,
}

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(
        FULL, "librispeech_deepspeech_tanh", (0.150883, 0.098613), activation=nn.tanh
    ),
    variant(
        FULL, "librispeech_deepspeech_no_resnet", (0.131564, 0.079297), residual=False
    ),
    variant(
        FULL,
        "librispeech_deepspeech_norm_and_spec_aug",
        (0.14342, 0.090976),
        {"eval_batch_size": 128},
        **NORM_AND_SPEC_AUGMENT,
    ),
    MINI,
    variant(MINI, "librispeech_deepspeech_tanh", (0.2612, 0.2043), activation=nn.tanh),
    variant(MINI, "librispeech_deepspeech_no_resnet", (0.183, 0.1447), residual=False),
    variant(
        MINI,
        "librispeech_deepspeech_norm_and_spec_aug",
        (0.2335, 0.2),
        **MINI_NORM_AND_SPEC_AUGMENT,
    ),
)
