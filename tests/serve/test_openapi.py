"""The OpenAPI page is true: requests made from it get only the answers that it names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from m3_integrations import M3Encoder, open_store
from m3_integrations.serve import create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def described(small: Path) -> Iterator[Any]:
    with open_store() as store, M3Encoder(small, shared=False, device="cpu") as encoder:
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(encoder, store=store, local_only=False))


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_answers_are_those_of_the_openapi_page(described: Any, mode: schemathesis.GenerationMode) -> None:
    n_asked = 0
    for operation in (found.ok() for found in described.get_all_operations()):
        takes_json = "application/json" in operation.definition.raw.get("requestBody", {}).get("content", {})
        if mode is schemathesis.GenerationMode.NEGATIVE and not takes_json:
            continue  # takes nothing that could be wrong

        @settings(
            max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case[Any]) -> None:
            nonlocal n_asked
            case.call_and_validate(checks=CHECKS)
            n_asked += 1

        ask()
    assert n_asked > 100
