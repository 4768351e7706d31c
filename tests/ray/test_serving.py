"""Replicas on Ray Serve answer as one `m3 serve` does, also while one of them dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from m3_integrations import M3Encoder, RemoteEncoder
from tests.ray.cluster import driver, wait_until
from tests.test_encoder import assert_same

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.enable_socket]

CLIENTS, CALLS = 8, 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_no_request_is_lost_when_a_replica_is_killed_under_load() -> None:
    with driver("serve", free_port()) as serving, M3Encoder("tiny") as local:
        url = serving.answer()["url"]
        first, second = serving.named("ServeReplica")
        texts = [[f"{call} {i}: keys of the vault" for i in range(8)] for call in range(CLIENTS * CALLS)]
        wanted = [local.encode(each) for each in texts]
        n_answered = 0
        counting = threading.Lock()

        def ask(client: int) -> None:
            nonlocal n_answered
            with RemoteEncoder(url) as encoder:
                for call in range(client * CALLS, (client + 1) * CALLS):
                    assert_same(encoder.encode(texts[call]), wanted[call], 1e-5)
                    with counting:
                        n_answered += 1

        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(ask, client) for client in range(CLIENTS)]
            wait_until(lambda: n_answered > CLIENTS * CALLS // 4)
            os.kill(first, signal.SIGKILL)
            assert n_answered < CLIENTS * CALLS
            for each in asking:
                each.result()
        assert n_answered == CLIENTS * CALLS
        wait_until(lambda: len(serving.named("ServeReplica")) == 2)  # it is replaced
        assert second in serving.named("ServeReplica")
        with RemoteEncoder(url) as encoder:
            assert encoder.fingerprint == local.fingerprint
            assert encoder.tokenize(["keys"]) == local.tokenize(["keys"])
            np.testing.assert_allclose(
                encoder.score("keys", ["a vault"]).combined, local.score("keys", ["a vault"]).combined, atol=1e-5
            )
