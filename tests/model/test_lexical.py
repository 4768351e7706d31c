"""One weight per distinct token, computed on the device: equal to the result of a plain loop."""

import numpy as np
import torch

from m3_integrations.model.forward_pass import largest_weights, lexical_rows
from m3_integrations.vectors import FloatArray, IntArray, LexicalRows
from tests.fakes import lexical_of_tokens

IGNORED = np.array([0, 1, 2, 3])


def on_device(rows: IntArray, ids: IntArray, weights: FloatArray, n: int) -> LexicalRows:
    tensors = [torch.from_numpy(array) for array in (weights, rows, ids, IGNORED)]
    keys, largest = largest_weights(*tensors)
    assert keys.shape == largest.shape == weights.shape
    return lexical_rows(keys.numpy(), largest.numpy(), n)


def test_the_largest_weight_of_a_repeated_token_stays_and_ignored_ids_go() -> None:
    rows = np.array([0, 0, 0, 0, 2, 2, 2, 3])
    ids = np.array([0, 9, 7, 9, 7, 250_001, 2, 1])
    weights = np.array([5, 0.5, 0, 0.75, 0.25, 1.5, 8, 9], np.float32)
    result = on_device(rows, ids, weights, 4)
    assert [text.to_dict() for text in result] == [{9: 0.75}, {}, {7: 0.25, 250_001: 1.5}, {}]


def test_exactly_what_the_host_makes_of_random_tokens() -> None:
    random = np.random.default_rng(0)
    for trial in range(200):
        n, tokens = int(random.integers(1, 9)), int(random.integers(1, 60))
        rows = np.sort(random.integers(0, n, tokens))  # some texts have none
        ids = random.integers(0, 4 if trial % 10 == 0 else 12, tokens)  # in every tenth trial all are ignored
        # Few distinct values, so that largest weights tie. Negative values and NaN count as no weight.
        weights = random.choice(np.array([-1, 0, 0.25, 0.5, 3e-8, 2, np.nan, np.inf], np.float32), tokens)
        expected = lexical_of_tokens(rows, ids, np.where(np.isin(ids, IGNORED), 0, weights), n)
        result = on_device(rows, ids, weights, n)
        for name in ("offsets", "indices", "values"):
            one, other = getattr(result, name), getattr(expected, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=f"{trial} {name}")
