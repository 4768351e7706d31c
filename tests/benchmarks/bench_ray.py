"""A corpus on Ray, killed once, beside one process: `python -m tests.benchmarks.bench_ray --texts 20000`.

Two workers with the bundled checkpoint encode into Parquet files. The driver and everything of Ray is killed (SIGKILL)
when a third of the records is written, the same call goes on from there, and the files are loaded into a store in a
folder. `Searcher.add` puts the same texts into another folder; then all records of both are compared.

The clock covers whole processes: Ray's start of some seconds and the model's load are in it. Other work on the machine
changes the seconds, not the counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from m3_integrations import open_store
from m3_integrations.parquet import load_parquet
from tests.ray.cluster import add_corpus, assert_equal_stores, driver, wait_until, write_corpus

BATCH = 256


def written(folder: Path) -> list[str]:
    """The ids in the files of a folder."""
    return [id_ for path in folder.glob("*.parquet") for id_ in pq.read_table(path, columns=["id"])["id"].to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    n = parser.parse_args().texts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, out = write_corpus(folder / "corpus", n), folder / "out"
        call = ("encode", folder / "corpus", out, "--batch-size", BATCH)

        began = time.perf_counter()
        with driver(*call) as killed:
            wait_until(lambda: len(list(out.glob("*.parquet"))) * BATCH >= n / 3, timeout_s=600)
            killed.kill()
        acknowledged = len(written(out))
        print(f"killed after {time.perf_counter() - began:6.1f} s with {acknowledged:,} of {n:,} records written")

        began = time.perf_counter()
        with driver(*call) as again:
            report = again.answer()
        print(f"went on for  {time.perf_counter() - began:6.1f} s: {report}")
        assert report == {"n_encoded": n - acknowledged, "n_there": acknowledged}
        assert sorted(written(out)) == sorted(line["id"] for line in lines)

        with open_store(folder / "loaded") as store, open_store(folder / "added") as expected:
            began, cpu = time.perf_counter(), time.process_time()
            loaded = load_parquet([out], store)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            print(f"m3 load      {seconds:6.1f} s ({cpu:.1f} s of CPU): {loaded}")
            began, cpu = time.perf_counter(), time.process_time()
            add_corpus(expected, lines)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            print(f"Searcher.add {seconds:6.1f} s ({cpu:.1f} s of CPU), in one process")
            assert_equal_stores(store, expected)
            print(f"the stores are equal in all {store.count():,} records")


if __name__ == "__main__":
    main()
