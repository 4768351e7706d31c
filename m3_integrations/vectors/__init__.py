"""The values that encoders return, scorers read and stores keep; and the checks that all encoders share."""

from m3_integrations.vectors.arrays import (
    FloatArray,
    IntArray,
    LexicalRows,
    LexicalWeights,
    M3Vectors,
    MultiVectorRows,
    offsets_of,
)
from m3_integrations.vectors.modes import (
    MODES,
    PRESETS,
    Kind,
    Mode,
    ModeWeights,
    WeightsLike,
    absent_heads,
    check_heads,
    check_modes,
    resolve_weights,
)
from m3_integrations.vectors.protocol import Encoder
from m3_integrations.vectors.scores import M3Scores
from m3_integrations.vectors.tensors import Tensors, modes_of, take_array, take_vectors, to_tensors
from m3_integrations.vectors.texts import (
    check_length,
    check_pairs,
    check_stream,
    check_texts,
    distinct_texts,
    warn_of_cut,
    windows,
)
from m3_integrations.vectors.warning import warn_caller

__all__ = [
    "MODES",
    "PRESETS",
    "Encoder",
    "FloatArray",
    "IntArray",
    "Kind",
    "LexicalRows",
    "LexicalWeights",
    "M3Scores",
    "M3Vectors",
    "Mode",
    "ModeWeights",
    "MultiVectorRows",
    "Tensors",
    "WeightsLike",
    "absent_heads",
    "check_heads",
    "check_length",
    "check_modes",
    "check_pairs",
    "check_stream",
    "check_texts",
    "distinct_texts",
    "modes_of",
    "offsets_of",
    "resolve_weights",
    "take_array",
    "take_vectors",
    "to_tensors",
    "warn_caller",
    "warn_of_cut",
    "windows",
]
