"""What a run is: frozen dataclasses that a recipe fills and ``config.json`` keeps; no torch.

They stop at the front door: models, transforms and optimisers take flat arguments.
"""

from convattn.config.data import OF_TRAINING, BadAnnotations, DataConfig, DataFormat
from convattn.config.images import DATA_FLAGS, FinetuneConfig, ImagesConfig, ProbeConfig, located
from convattn.config.model import (
    DEFAULT_POOL,
    AugmentConfig,
    ModelConfig,
    PoolName,
    Scalar,
    check_pool_options,
    pool_layer,
)
from convattn.config.reading import RESTORE, as_flags
from convattn.config.testing import EvaluateConfig, PredictConfig
from convattn.config.training import FSDP2, LoggerName, OptimConfig, TrainConfig

__all__ = [
    "DATA_FLAGS",
    "DEFAULT_POOL",
    "FSDP2",
    "OF_TRAINING",
    "RESTORE",
    "AugmentConfig",
    "BadAnnotations",
    "DataConfig",
    "DataFormat",
    "EvaluateConfig",
    "FinetuneConfig",
    "ImagesConfig",
    "LoggerName",
    "ModelConfig",
    "OptimConfig",
    "PoolName",
    "PredictConfig",
    "ProbeConfig",
    "Scalar",
    "TrainConfig",
    "as_flags",
    "check_pool_options",
    "located",
    "pool_layer",
]
