import copy
import pickle
from typing import Any

import numpy as np
import pytest

from m3_integrations import LexicalWeights, M3Scores, M3Vectors, ModeWeights
from m3_integrations.vectors import LexicalRows, MultiVectorRows, check_modes, resolve_weights


def make_vectors() -> M3Vectors:
    """Three texts: two tokens, none, three."""
    lexical = LexicalRows(
        np.array([0, 2, 2, 5]), np.array([3, 9, 1, 2, 3], np.int32), np.array([0.5, 1, 2, 0.25, 4], np.float32),
        [f"token {i}" for i in range(10)],
    )  # fmt: skip
    flat = np.arange(10, dtype=np.float32).reshape(5, 2)
    return M3Vectors(
        dense=np.eye(3, dtype=np.float32), lexical=lexical, multi_vector=MultiVectorRows(np.array([0, 2, 2, 5]), flat)
    )


def test_rows_are_the_slices_between_offsets() -> None:
    vectors = make_vectors()
    assert vectors.lexical[2].to_dict() == {1: 2.0, 2: 0.25, 3: 4.0}
    assert vectors.lexical[-1].to_dict() == vectors.lexical[2].to_dict()
    assert len(vectors.lexical[1]) == 0
    assert vectors.multi_vector[0].tolist() == [[0, 1], [2, 3]]
    assert vectors.multi_vector[1].shape == (0, 2)
    assert [len(rows) for rows in vectors.multi_vector] == [2, 0, 3]
    with pytest.raises(IndexError):
        vectors.lexical[3]


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [1]), (-1, [2]), (slice(1, None), [1, 2]), ([2, 0, 2], [2, 0, 2]), (slice(0, 0), [])]
)
def test_indexing_gives_the_chosen_texts_in_every_mode(rows: int | slice | list[int], expected: list[int]) -> None:
    vectors, chosen = make_vectors(), make_vectors()[rows]
    assert len(chosen) == len(expected)
    for i, row in enumerate(expected):
        assert chosen.dense[i].tolist() == vectors.dense[row].tolist()
        assert chosen.lexical[i].to_dict() == vectors.lexical[row].to_dict()
        assert chosen.multi_vector[i].tolist() == vectors.multi_vector[row].tolist()


def test_an_index_past_the_end_raises() -> None:
    with pytest.raises(IndexError, match="index 3 is out of range for 3 texts"):
        make_vectors()[3]


@pytest.mark.parametrize("rows", [[True, False, True], 1.7, "1", [[0, 1]]])
def test_texts_are_not_chosen_by_anything_but_integers(rows: object) -> None:
    with pytest.raises(TypeError, match="chosen by integers"):
        make_vectors()[rows]  # type: ignore[index]


def test_a_part_keeps_nothing_of_the_whole_alive() -> None:
    part = make_vectors()[0:1]
    arrays = (part.dense, part.lexical.values, part.lexical.indices, part.multi_vector.flat)
    assert all(array.base is None or array.base.nbytes == array.nbytes for array in arrays)
    assert part.nbytes == 12 + (16 + 8 + 8) + (16 + 16)


def test_a_mode_that_was_not_computed_raises_and_says_how_to_get_it() -> None:
    with pytest.raises(
        ValueError, match=r"lexical vectors were not computed, only dense: .*modes=, if the checkpoint has a head"
    ):
        _ = M3Vectors(dense=np.zeros((1, 2), np.float32)).lexical
    with pytest.raises(ValueError, match="multi_vector scores"):
        _ = M3Scores(dense=np.zeros(1, np.float32), combined=np.zeros(1, np.float32)).multi_vector


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        M3Vectors(dense=np.zeros((2, 2), np.float32), lexical=make_vectors().lexical)
    with pytest.raises(ValueError, match="offsets end at 3"):
        MultiVectorRows(np.array([0, 3]), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="combined"):
        M3Scores(dense=np.zeros(1, np.float32), combined=np.zeros(2, np.float32))


def test_concatenating_parts_gives_the_whole() -> None:
    vectors = make_vectors()
    whole = M3Vectors.concatenate([vectors[0], vectors[1:3]])
    assert whole.dense.tolist() == vectors.dense.tolist()
    assert [w.to_dict() for w in whole.lexical] == [w.to_dict() for w in vectors.lexical]
    assert whole.multi_vector.flat.tolist() == vectors.multi_vector.flat.tolist()
    with pytest.raises(ValueError, match="same modes"):
        M3Vectors.concatenate([vectors, vectors.select(["dense"])])


def test_tokens_are_named_heaviest_first() -> None:
    vectors = make_vectors()
    assert vectors.lexical[2].tokens() == [("token 3", 4.0), ("token 1", 2.0), ("token 2", 0.25)]
    with pytest.raises(ValueError, match=r"encoder\.vocabulary"):
        LexicalWeights(np.array([1], np.int32), np.array([1.0], np.float32)).tokens()


def test_pickling_keeps_the_values_and_leaves_the_vocabulary_behind() -> None:
    vectors = make_vectors()
    for again in (pickle.loads(pickle.dumps(vectors)), copy.deepcopy(vectors)):
        assert again.dense.tolist() == vectors.dense.tolist()
        assert again.lexical[0].to_dict() == vectors.lexical[0].to_dict()
        assert again.lexical.vocabulary is None
        assert again.multi_vector[2].tolist() == vectors.multi_vector[2].tolist()
    assert b"token 9" not in pickle.dumps(vectors.lexical[0])


def test_weights_are_divided_by_the_sum_of_the_modes_that_are_there() -> None:
    weights = ModeWeights.preset("miracl")
    assert weights.normalized() == pytest.approx({"dense": 1 / 2.3, "lexical": 0.3 / 2.3, "multi_vector": 1 / 2.3})
    assert weights.normalized(["dense", "lexical"]) == pytest.approx({"dense": 1 / 1.3, "lexical": 0.3 / 1.3})
    assert ModeWeights().normalized(["dense"]) == {"dense": 1.0}
    assert ModeWeights(1e308, 1e308, 1e308).normalized() == pytest.approx(ModeWeights().normalized())


@pytest.mark.parametrize("values", [(0, 0, 0), (-1, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1)])
def test_meaningless_weights_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="finite, 0 or more and not all 0"):
        ModeWeights(*values)


def test_a_weight_that_no_float_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="weights must be finite numbers, got an integer that no float can hold"):
        resolve_weights([10**400, 1, 1])


def test_weights_on_absent_modes_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="absent"):
        ModeWeights(dense=0, lexical=1, multi_vector=0).normalized(["dense"])


def test_unknown_presets_and_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown weights 'best'"):
        ModeWeights.preset("best")
    with pytest.raises(ValueError, match=r"modes must be one or more of .* got \['1', 'dense'\]"):
        check_modes(["dense", 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="sparse"):
        ModeWeights().normalized(["sparse"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"\('dense',\)"):
        make_vectors().select("dense")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "weights",
    [
        [1, 0.3, 1],
        (1, 0.3, 1),
        np.array([1, 0.3, 1]),
        {"lexical": 0.3, "dense": 1, "multi_vector": 1},
        "miracl",
        ModeWeights(1, 0.3, 1),
    ],
    ids=str,
)
def test_weights_are_written_in_many_ways(weights: Any) -> None:
    assert resolve_weights(weights) == ModeWeights(1.0, 0.3, 1.0)


@pytest.mark.parametrize(
    "weights",
    [[1, 1], [1, 1, 1, 1], {1, 2, 3}, {"dense": 1}, {"dense": 1, "sparse": 1, "multi_vector": 1}, 3, b"abc",
     ["1", 1, 1], [True, 1, 1]],
    ids=str,
)  # fmt: skip
def test_what_can_be_no_weights_is_refused_with_what_can(weights: Any) -> None:
    with pytest.raises(TypeError, match=r"three numbers, as \[dense, lexical, multi_vector\] or as a mapping"):
        resolve_weights(weights)
