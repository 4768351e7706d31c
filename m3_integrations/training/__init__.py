"""The three training stages of BGE-M3 on transformers' `Trainer`: RetroMAE, contrastive, unified with distillation."""

from m3_integrations.training.config import TrainingConfig
from m3_integrations.training.health import HeadDiedError
from m3_integrations.training.losses import LossSettings, LossTerms, compute_loss
from m3_integrations.training.run import run_training, train
from m3_integrations.training.stages import load_config, load_stages

__all__ = [
    "HeadDiedError",
    "LossSettings",
    "LossTerms",
    "TrainingConfig",
    "compute_loss",
    "load_config",
    "load_stages",
    "run_training",
    "train",
]
