"""What a smaller store costs on questions: values held to those of searches in stores that are really made."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient
from typer.testing import CliRunner

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.cli import app
from m3_integrations.cli.fit import _command, verdict
from m3_integrations.evaluation import Dataset, read_dataset
from m3_integrations.evaluation.storage import Storage, StorageCost, StorageFit, fit_storage
from m3_integrations.indexing import index_files
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.served import ServedStore
from m3_integrations.store.server import ServerStore
from tests.evaluation.worlds import write_beir
from tests.fakes import FakeEncoder
from tests.serve.conftest import serving_store

XQUAD = Path(__file__).parents[3] / "shared" / "data" / "xquad"

TEXTS = {
    "museum": "The museum of the harbour is closed on Mondays and in January.",
    "keys": "Rotate the keys of the vault once a year, and keep the old ones sealed.",
    "salt": "Sea water is some three and a half percent salt by weight.",
    "anchor": "An anchor is thrown into the water, and holds the ship by its chain.",
    "bread": "Bread rises for two hours before it goes into the oven.",
}
QUESTIONS = {
    "q1": ("when is the museum closed?", "museum"),
    "q2": ("how often are keys rotated?", "keys"),
    "q3": ("how much salt is in sea water?", "salt"),
    "q4": ("what holds a ship in the water?", "anchor"),
    "q5": ("how long does bread rise?", "bread"),
}


@pytest.fixture
def world(tmp_path: Path) -> Dataset:
    folder = tmp_path / "world"
    write_beir(
        folder,
        TEXTS,
        {id_: text for id_, (text, _) in QUESTIONS.items()},
        {id_: {document: 1} for id_, (_, document) in QUESTIONS.items()},
    )
    return read_dataset(folder, titles=False)


@pytest.fixture
def tiny() -> Iterator[M3Encoder]:
    with M3Encoder("tiny", device="cpu") as encoder:
        yield encoder


def filled(folder: Path, encoder: M3Encoder, texts: dict[str, str], **settings: object) -> EdgeStore:
    store = open_store(folder, **settings)  # type: ignore[arg-type]
    assert isinstance(store, EdgeStore)
    Searcher(encoder, store).add(list(texts.values()), ids=list(texts))
    return store


def searched(store: EdgeStore, encoder: M3Encoder, world: Dataset) -> list[float]:
    """nDCG@10 of what a search really returns, with one relevant document: 1 / log2(rank + 1)."""
    searcher, values = Searcher(encoder, store), []
    for id_, text in world.queries.items():
        found = [hit.id for hit in searcher.search(text, k=10)]
        (relevant,) = world.qrels[id_]
        values.append(1 / np.log2(found.index(relevant) + 2) if relevant in found else 0.0)
    return values


def test_every_way_is_measured_as_a_store_that_is_made_like_it(tmp_path: Path, world: Dataset, tiny: M3Encoder) -> None:
    with filled(tmp_path / "whole", tiny, TEXTS) as store:
        fit = fit_storage(store, tiny, world)
        np.testing.assert_allclose(fit.kept.values, searched(store, tiny, world), atol=1e-6)
    assert {str(cost.storage) for cost in fit.smaller} == {
        "turbo8", "float16, pooling 2", "turbo4", "turbo8, pooling 2", "turbo4, pooling 2", "none",
    }  # fmt: skip
    assert [cost.bytes_per_token for cost in fit.smaller] == sorted(
        (cost.bytes_per_token for cost in fit.smaller), reverse=True
    )
    for i, cost in enumerate(fit.smaller):
        settings = cost.storage._asdict()
        with filled(tmp_path / str(i), tiny, TEXTS, **settings) as other:
            np.testing.assert_allclose(cost.values, searched(other, tiny, world), atol=1e-6)
    assert fit.kept.bytes_per_token == 512
    assert [cost.bytes_per_token for cost in fit.smaller if cost.storage.token_pooling == 1] == [260, 132, 0]
    errors = {cost.storage: cost.largest_error for cost in fit.smaller}
    assert 0 < errors[Storage("turbo8")] < 2e-3 < errors[Storage("turbo4")] < errors[Storage("turbo4", 2)]


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes have no effect in the local")
def test_a_served_store_is_fitted_as_the_folder_behind_it(tmp_path: Path, world: Dataset, tiny: M3Encoder) -> None:
    with open_store(tmp_path / "s") as store:
        with serving_store(store) as url:
            with ServedStore(url) as served:  # opened before there is a record, and used to fill it
                Searcher(tiny, served).add(list(TEXTS.values()), ids=list(TEXTS))
                found = fit_storage(served, tiny, world)
            arguments = ["fit", url, "--questions", str(world.corpus.path.parent), "--model", "tiny"]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            assert result.stdout.splitlines()[1].split()[:3] == ["float16", "512", f"{found.kept.values.mean():.4f}"]
        behind = fit_storage(store, tiny, world)
    on_qdrant = ServerStore("local", client=QdrantClient(":memory:"))
    Searcher(tiny, on_qdrant).add(list(TEXTS.values()), ids=list(TEXTS))
    for other in (found, fit_storage(on_qdrant, tiny, world)):
        for one, same in zip((behind.kept, *behind.smaller), (other.kept, *other.smaller), strict=True):
            assert (one.storage, one.bytes_per_token) == (same.storage, same.bytes_per_token)
            np.testing.assert_allclose(one.values, same.values, atol=1e-6)
            assert same.size_bytes is None
    with serving_store(open_store()) as url, ServedStore(url) as served:
        Searcher(tiny, served).add(list(TEXTS.values()), ids=list(TEXTS))
        result = CliRunner().invoke(app, ["fit", url, *arguments[2:]])
        assert (result.exit_code, "in memory, where" in result.stderr) == (1, True), result.output


def test_the_smallest_within_the_loss_is_the_one_whose_interval_is(world: Dataset) -> None:
    ones, n = np.ones(400), 400

    def cost(storage: Storage, bytes_per_token: float, lost: int) -> StorageCost:
        values = ones.copy()
        values[:lost] = 0
        return StorageCost(
            storage=storage, bytes_per_token=bytes_per_token, size_bytes=None, values=values, largest_error=0
        )

    fit = StorageFit(
        metric="nDCG@10",
        kept=cost(Storage("float16"), 2048, 0),
        smaller=[cost(Storage("turbo8"), 1028, 0), cost(Storage("turbo4"), 516, 4), cost(Storage("none"), 0, 40)],
    )
    assert fit.compare(fit.smaller[1]).difference.mean == pytest.approx(4 / n)
    turbo8, turbo4, none = fit.smaller
    assert fit.smallest(0.0) is None
    assert fit.smallest(0.01) is turbo8  # of turbo4 the mean is within, but it is not shown
    assert fit.smallest(0.03) is turbo4
    assert fit.smallest(0.2) is none
    assert verdict(fit, 0.01).startswith("turbo8 is the smallest that loses at most 1 % of nDCG@10, shown on 400")
    assert "token vectors 2.0 times smaller, for 0.00 %" in verdict(fit, 0.01)
    only = StorageFit(metric="nDCG@10", kept=fit.kept, smaller=[none])
    assert verdict(only, 0.01).startswith("Keep float16: of no smaller store 400 questions show")
    assert verdict(only, 0.01).endswith("(the upper end of the interval).")


def fit_of(kept: list[float], smaller: list[float]) -> StorageFit:
    whole = StorageCost(
        storage=Storage("float16"), bytes_per_token=512, size_bytes=None, values=np.array(kept), largest_error=0
    )
    other = replace(whole, storage=Storage("none"), bytes_per_token=0, values=np.array(smaller))
    return StorageFit(metric="nDCG@10", kept=whole, smaller=[other])


@pytest.mark.parametrize(("n", "asked"), [(1, "1 question is"), (29, "29 questions are")])
def test_a_few_questions_show_nothing(n: int, asked: str) -> None:
    fit = fit_of([1.0] * n, [1.0] * n)
    assert fit.smallest(0.9) is None
    assert verdict(fit, 0.9) == (f"Keep float16: {asked} too few to show what a smaller store loses, ask at least 30.")


def test_questions_that_are_all_equal_show_what_their_number_does() -> None:
    for n, is_shown in ((299, False), (300, True)):
        fit = fit_of([0.5] * n, [0.5] * n)
        loss = fit.compare(fit.smaller[0]).difference
        assert (loss.mean, loss.low) == (0, 0)
        assert loss.high == pytest.approx(3 / n)
        assert (fit.smallest(0.01) is not None) == is_shown
    assert verdict(fit_of([0.5] * 100, [0.5] * 100), 0.01) == (
        "Keep float16: of no smaller store 100 questions show that it loses at most 1 % of nDCG@10 (the upper end of "
        "the interval). Even of one that changes nothing it takes 300 to show that."
    )


def test_where_few_questions_differ_the_interval_is_wider_than_the_bootstraps() -> None:
    for lost, high in (([0.0], 0.04), ([0.0] * 5, 0.10), ([0.999], 0.03001)):  # 0.10 is the bootstrap's own
        fit = fit_of([1.0] * 100, lost + [1.0] * (100 - len(lost)))
        loss = fit.compare(fit.smaller[0]).difference
        assert loss.mean == pytest.approx((len(lost) - sum(lost)) / 100)
        assert loss.high == pytest.approx(high)


def test_what_cannot_be_fitted_is_refused(tmp_path: Path, world: Dataset, tiny: M3Encoder) -> None:
    with pytest.raises(ValueError, match=r"are in memory, .*: fit a copy, copy_store\(store, open_store\(FOLDER\)\)"):
        fit_storage(open_store(), tiny, world)
    with filled(tmp_path / "none", tiny, TEXTS, multi_vector="none") as store:
        with pytest.raises(ValueError, match="holds no token vectors"):
            fit_storage(store, tiny, world)
        with pytest.raises(ValueError, match="holds vectors of the model"):
            fit_storage(store, FakeEncoder(), world)
    others = {f"other {id_}": text for id_, text in TEXTS.items()}
    with (
        filled(tmp_path / "others", tiny, others) as store,
        pytest.raises(ValueError, match=r"no question of world finds .* such as 'other"),
    ):
        fit_storage(store, tiny, world)


def test_a_judged_name_that_stands_for_records_of_several_files_is_warned_of(
    tmp_path: Path, world: Dataset, tiny: M3Encoder
) -> None:
    corpus = world.corpus.path
    (tmp_path / "copy.jsonl").write_bytes(corpus.read_bytes())
    with open_store(tmp_path / "store") as store:
        index_files([corpus, tmp_path / "copy.jsonl"], tiny, store)
        with pytest.warns(UserWarning, match=r"stands for records of 2 files.* 4 further names do too: name the full"):
            fit_storage(store, tiny, world)


def test_the_command_prints_a_table_of_80_columns_a_sentence_and_a_command_that_works(
    tmp_path: Path, tiny: M3Encoder
) -> None:
    asked = {f"{id_} {i}": pair for i in range(8) for id_, pair in QUESTIONS.items()}
    write_beir(
        tmp_path / "many",
        TEXTS,
        {id_: text for id_, (text, _) in asked.items()},
        {id_: {document: 1} for id_, (_, document) in asked.items()},
    )
    corpus = read_dataset(tmp_path / "many", titles=False).corpus.path
    place = tmp_path / "it's $HOME"
    with open_store(place) as store:
        index_files([corpus], tiny, store)  # the ids of records are not those of qrels then
    questions = str(corpus.parent)
    result = CliRunner().invoke(app, ["fit", str(place), "--questions", questions, "--max-loss", "50%"])
    assert result.exit_code == 0, result.output
    *table, empty, sentence, copy, command = result.stdout.splitlines()
    assert max(map(len, table)) <= 80
    assert (len(table), empty, copy) == (8, "", "A copy like that, which encodes nothing:")
    assert table[1].split()[:2] == ["float16", "512"]
    assert sentence.startswith(
        "none is the smallest that loses at most 50 % of nDCG@10, shown on 40 questions: a store"
    )
    python, option, program = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(program.replace('"NEW"', repr(str(tmp_path / "new"))), {})
    with open_store(tmp_path / "new") as made:
        assert made.count() == 5
        assert made.modes == ("dense", "lexical")


@pytest.mark.parametrize(
    ("max_loss", "message"), [("much", "such as 1% or 0.01"), ("-1%", "got '-1%'"), ("100%", "a share")]
)
def test_a_loss_that_is_no_share_is_refused(tmp_path: Path, world: Dataset, max_loss: str, message: str) -> None:
    arguments = ["fit", str(tmp_path / "s"), "--questions", str(world.corpus.path.parent), "--max-loss", max_loss]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "s").exists()


def test_no_store_is_made_where_there_is_none(tmp_path: Path, world: Dataset) -> None:
    result = CliRunner().invoke(app, ["fit", str(tmp_path / "s"), "--questions", str(world.corpus.path.parent)])
    assert result.exit_code == 1
    assert "no store at" in result.output
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*longer than")
@pytest.mark.skipif(not XQUAD.exists(), reason="XQuAD is not beside the project")
def test_on_xquad_turbo8_loses_nothing(tmp_path: Path, tiny: M3Encoder) -> None:
    """A sixth of the German questions, over all 240 paragraphs."""
    whole = read_dataset(XQUAD / "de", titles=False)
    queries = dict(list(whole.queries.items())[::6])
    part = Dataset(
        name="de", corpus=whole.corpus, queries=queries, qrels={id_: whole.qrels[id_] for id_ in queries}, answers={}
    )
    texts = dict(zip(whole.corpus.ids, whole.corpus.texts(), strict=True))
    with filled(tmp_path / "s", tiny, texts) as store:
        fit = fit_storage(store, tiny, part)
    turbo8 = next(cost for cost in fit.smaller if cost.storage == Storage("turbo8"))
    assert fit.kept.values.mean() == pytest.approx(0.9, abs=0.08)
    assert abs(fit.compare(turbo8).difference.mean) < 0.003
    assert turbo8.largest_error < 5e-3


def test_the_printed_copy_names_the_collection_and_every_node() -> None:
    ones = np.ones(400)
    kept = StorageCost(storage=Storage("float16"), bytes_per_token=512, size_bytes=None, values=ones, largest_error=0)
    smaller = replace(kept, storage=Storage("turbo8"), bytes_per_token=260)
    fit = StorageFit(metric="nDCG@10", kept=kept, smaller=[smaller])
    (_, line) = _command(fit, 0.01, "https://a:6333,https://b:6333", "docs")
    program = shlex.split(line)[2]
    assert "open_store(['https://a:6333', 'https://b:6333'], collection='docs')" in program
    compile(program, "printed", "exec")
