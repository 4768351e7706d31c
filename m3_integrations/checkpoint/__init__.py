"""Find, download, read and save a checkpoint: backbone, two heads and tokenizer, in BGE-M3's own format."""

from m3_integrations.checkpoint.files import files_stamp, head_files, read_tensors, weight_files
from m3_integrations.checkpoint.finding import BUNDLED, DEFAULT, find_checkpoint
from m3_integrations.checkpoint.heads import Heads, load_heads
from m3_integrations.checkpoint.modules import (
    DensePooling,
    check_width,
    count_positions,
    default_prompt,
    read_limit,
    read_pooling,
)
from m3_integrations.checkpoint.saving import save_checkpoint
from m3_integrations.checkpoint.tokenizers import load_tokenizer

__all__ = [
    "BUNDLED",
    "DEFAULT",
    "DensePooling",
    "Heads",
    "check_width",
    "count_positions",
    "default_prompt",
    "files_stamp",
    "find_checkpoint",
    "head_files",
    "load_heads",
    "load_tokenizer",
    "read_limit",
    "read_pooling",
    "read_tensors",
    "save_checkpoint",
    "weight_files",
]
