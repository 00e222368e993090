"""A minute of what tests/benchmarks/serving_soak.py does for half an hour."""

from __future__ import annotations

import asyncio

from served import serving
from soak import soak

SECONDS = 60.0
GROWTH = 0.05
"""The bar: memory is flat within this share."""


def test_many_clients_for_a_minute_get_their_own_texts_and_nothing_grows() -> None:
    with serving() as server:
        report = asyncio.run(soak(server, SECONDS))
        assert report.wrong == []
        assert report.errors == {}
        assert report.requests > 500, report
        assert report.left > 20, report
        assert report.growth < GROWTH, report
        assert server.ask("/metrics")[2]["content"].count('steplm_texts{model="tiny_bundle"} 0') == 1
        assert {line["status"] for line in server.log()} <= {200, 429, 499}
        assert server.stop() == 0
