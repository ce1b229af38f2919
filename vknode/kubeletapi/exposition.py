"""Metric families as Prometheus' text, in the version that every reader of kubelets knows."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from prometheus_client import Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4


class _Families:
    """What `generate_latest` takes: something to collect from."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Iterable[Metric]) -> bytes:
    """Families without samples are left out, as by a kubelet."""
    return generate_latest(_Families(family for family in families if family.samples))


def metrics_response(families: Iterable[Metric]) -> web.Response:
    return web.Response(body=render(families), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
