"""ImageNet ResNet: classify images (MLCommons AlgoPerf workload imagenet_resnet)."""

import flax.linen as nn
import jax.numpy as jnp

from algoperf import spec
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.common import fashion_mnist, imagenet
from workloads.common.image_classification import ImageClassification
from workloads.imagenet_resnet.model import ResNet

MINI = ImageClassification(
    base_workload="imagenet_resnet",
    variant="imagenet_resnet",
    scale="mini",
    model=ResNet(
        stage_sizes=(1, 1, 1),
        num_filters=8,
        num_classes=fashion_mnist.NUM_CLASSES,
        small_stem=True,
        stem_strides=2,
    ),
    pipeline=fashion_mnist.dataset,
    input_shape=fashion_mnist.IMAGE_SHAPE,
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="accuracy",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.8845,
    test_target_value=0.862,
    num_train_examples=fashion_mnist.NUM_TRAIN,
    num_eval_train_examples=fashion_mnist.NUM_EVAL_TRAIN,
    num_validation_examples=fashion_mnist.NUM_VALIDATION,
    num_test_examples=fashion_mnist.NUM_TEST,
    default_batch_size=128,
    max_batch_size=256,
    eval_batch_size=512,
    step_hint=1600,
    eval_period_steps=80,
    max_allowed_runtime_sec=78.0,
    batch_norm_follows_mode=False,
    train_mean=(fashion_mnist.MEAN,),
    train_stddev=(fashion_mnist.STDDEV,),
    output_params=("head",),
)

# ResNet-50 of 25,557,032 parameters, 53,120 batch statistics.
FULL = ImageClassification(
    base_workload="imagenet_resnet",
    variant="imagenet_resnet",
    scale="full",
    model=ResNet(),
    pipeline=imagenet.resnet_pipeline,
    data_source=imagenet.DATA_SOURCE,
    input_shape=imagenet.IMAGE_SHAPE,
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="accuracy",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.77431,
    test_target_value=0.6560,
    num_train_examples=imagenet.NUM_TRAIN,
    num_eval_train_examples=imagenet.RESNET_NUM_EVAL_TRAIN,
    num_validation_examples=imagenet.NUM_VALIDATION,
    num_test_examples=imagenet.NUM_TEST,
    default_batch_size=1024,
    eval_batch_size=1024,
    step_hint=195_999,
    eval_period_time_sec=510.0,
    max_allowed_runtime_sec=66_159.0,
    published_budgets_sec={"0.5": 63_008.0, "0.6": 66_159.0},
    published_step_sec={"8x A100": 0.259},
    batch_norm_follows_mode=False,
    train_mean=imagenet.MEAN,
    train_stddev=imagenet.STDDEV,
    output_params=("head",),
)
B512 = {"default_batch_size": 512}  # as in the reference submission

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(FULL, "imagenet_resnet_silu", (0.75445, 0.6323), B512, activation=nn.silu),
    variant(FULL, "imagenet_resnet_gelu", (0.76765, 0.6519), B512, activation=nn.gelu),
    variant(
        FULL, "imagenet_resnet_large_bn_init", (0.76526, 0.6423), bn_init_scale=8.0
    ),
    MINI,
    variant(MINI, "imagenet_resnet_silu", (0.8875, 0.862), activation=nn.silu),
    variant(MINI, "imagenet_resnet_gelu", (0.8855, 0.867), activation=nn.gelu),
    variant(MINI, "imagenet_resnet_large_bn_init", (0.884, 0.869), bn_init_scale=8.0),
)
