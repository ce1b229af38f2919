"""Option types that the pool's commands share."""

from __future__ import annotations

import re
from typing import Any

import click

from vknode.pool.quantity import is_amount

_RESOURCE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?")


class Capacity(click.ParamType[dict[str, str]]):
    """`cpu=8,memory=16Gi,pods=110`: Kubernetes resource names and quantities."""

    name = "resource=quantity,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Resource names to quantities."""
        if isinstance(value, dict):
            return value
        found: dict[str, str] = {}
        for part in str(value).split(","):
            resource, equals, amount = part.strip().partition("=")
            if not equals or not _RESOURCE.fullmatch(resource):
                self.fail(f"{part!r} is not RESOURCE=QUANTITY, as in cpu=8", param, ctx)
            if not is_amount(amount):
                self.fail(f"{resource}: {amount!r} is no quantity, as 8, 500m or 16Gi", param, ctx)
            if resource in found:
                self.fail(f"{resource} is given twice", param, ctx)
            found[resource] = amount
        for resource in ("cpu", "memory", "pods"):
            if resource not in found:
                self.fail(
                    f"{resource} is missing; give it as in cpu=8,memory=16Gi,pods=110", param, ctx
                )
        return found
