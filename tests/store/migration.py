"""The other model of a migration, and a process that migrates until it is killed: `python -m tests.store.migration`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from m3_integrations import open_store
from m3_integrations.store.migrating import migrate_store
from m3_integrations.store.served import ServedStore
from m3_integrations.vectors import Kind, M3Vectors, Mode
from tests.fakes import FakeEncoder


class Successor(FakeEncoder):
    """Other vectors than `FakeEncoder`'s for every text; writes down how many texts each call had."""

    model, fingerprint = "successor", "5ccc0123456789"

    def __init__(self, modes: tuple[Mode, ...] = FakeEncoder().modes, *, delay_s: float = 0.0, log: Path | None = None):
        super().__init__(modes, delay_s)
        self.log = log

    def _vectors(self, texts: Sequence[str], kind: Kind) -> M3Vectors:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{len(texts)}\n")
        return super()._vectors([f"{text} anew" for text in texts], kind)


def main(url: str, folder: str, log: str) -> None:
    with ServedStore(url) as source, open_store(folder) as target:
        print("open", flush=True)  # noqa: T201
        migrate_store(source, target, Successor(delay_s=0.03, log=Path(log)))


if __name__ == "__main__":
    main(*sys.argv[1:])
