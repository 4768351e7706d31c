"""Training data from a user's own texts: hard negatives for a file of pairs, and questions for passages."""

from m3_integrations.training.mining.choosing import MiningOptions
from m3_integrations.training.mining.mining import MiningReport, Teacher, mine_negatives
from m3_integrations.training.mining.passages import index_passages, read_passages
from m3_integrations.training.mining.teacher import CrossEncoder

__all__ = [
    "CrossEncoder",
    "MiningOptions",
    "MiningReport",
    "Teacher",
    "index_passages",
    "mine_negatives",
    "read_passages",
]
