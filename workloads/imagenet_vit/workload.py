"""ImageNet ViT: classify images (MLCommons AlgoPerf workload imagenet_vit)."""

import functools

import jax.numpy as jnp

from algoperf import spec
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.common import fashion_mnist, imagenet
from workloads.common.image_classification import ImageClassification
from workloads.imagenet_vit.model import VisionTransformer

FULL = ImageClassification(
    base_workload="imagenet_vit",
    variant="imagenet_vit",
    scale="full",
    model=VisionTransformer(),
    pipeline=imagenet.vit_pipeline,
    data_source=imagenet.DATA_SOURCE,
    input_shape=imagenet.IMAGE_SHAPE,
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="accuracy",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.77309,
    test_target_value=0.6519,
    num_train_examples=imagenet.NUM_TRAIN,
    num_eval_train_examples=imagenet.VIT_NUM_EVAL_TRAIN,
    num_validation_examples=imagenet.NUM_VALIDATION,
    num_test_examples=imagenet.NUM_TEST,
    default_batch_size=1024,
    eval_batch_size=2048,
    step_hint=167_999,
    eval_period_time_sec=420.0,
    max_allowed_runtime_sec=69_768.0,
    published_budgets_sec={"0.5": 77_520.0, "0.6": 69_768.0},
    published_step_sec={"8x A100": 0.386},
    train_mean=imagenet.MEAN,
    train_stddev=imagenet.STDDEV,
    output_params=("head",),
)

MINI = ImageClassification(
    base_workload="imagenet_vit",
    variant="imagenet_vit",
    scale="mini",
    model=VisionTransformer(
        num_classes=fashion_mnist.NUM_CLASSES,
        patch_size=7,
        width=64,
        num_layers=3,
        num_heads=4,
        mlp_width=128,
    ),
    pipeline=functools.partial(fashion_mnist.dataset, mixed=True),
    input_shape=fashion_mnist.IMAGE_SHAPE,
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="accuracy",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.8365,
    test_target_value=0.822,
    num_train_examples=fashion_mnist.NUM_TRAIN,
    num_eval_train_examples=fashion_mnist.NUM_EVAL_TRAIN,
    num_validation_examples=fashion_mnist.NUM_VALIDATION,
    num_test_examples=fashion_mnist.NUM_TEST,
    default_batch_size=128,
    max_batch_size=256,
    eval_batch_size=512,
    step_hint=2400,
    eval_period_steps=120,
    max_allowed_runtime_sec=82.0,
    train_mean=(fashion_mnist.MEAN,),
    train_stddev=(fashion_mnist.STDDEV,),
    output_params=("head",),
)

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(FULL, "imagenet_vit_glu", (0.75738, 0.6359), gated_mlp=True),
    # 22,121,704 parameters
    variant(FULL, "imagenet_vit_post_ln", (0.75312, 0.6286), post_layer_norm=True),
    variant(FULL, "imagenet_vit_map", (0.77113, 0.6523), attention_pool=True),
    MINI,
    variant(MINI, "imagenet_vit_glu", (0.8485, 0.827), gated_mlp=True),
    variant(MINI, "imagenet_vit_post_ln", (0.831, 0.825), post_layer_norm=True),
    variant(MINI, "imagenet_vit_map", (0.8185, 0.814), attention_pool=True),
)
