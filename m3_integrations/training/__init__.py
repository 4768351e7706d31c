"""Fine-tuning of all three modes with self-knowledge distillation, on transformers' `Trainer`."""

from m3_integrations.training.config import TrainingConfig, load_config
from m3_integrations.training.health import HeadDiedError
from m3_integrations.training.losses import LossSettings, LossTerms, compute_loss
from m3_integrations.training.run import run_training, train

__all__ = [
    "HeadDiedError",
    "LossSettings",
    "LossTerms",
    "TrainingConfig",
    "compute_loss",
    "load_config",
    "run_training",
    "train",
]
