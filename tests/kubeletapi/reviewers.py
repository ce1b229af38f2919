"""A cluster's answers to reviews, as a test wants them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from vknode.kubeletapi import Access, ReviewError, User

API_SERVER = "kube-apiserver-kubelet-client"


def api_server_only(access: Access) -> bool:
    return access.user.name == API_SERVER


@dataclass
class Rules:
    """`allows` is RBAC. Every question is kept in its order; `gate` holds answers back while it
    is clear; with `failure` nobody answers."""

    allows: Callable[[Access], bool] = api_server_only
    tokens: dict[str, User] = field(default_factory=dict)
    failure: str = ""
    asked: list[Access] = field(default_factory=list)
    reviewed: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def token_user(self, token: str) -> User | None:
        self.reviewed.append(token)
        await self._answer()
        return self.tokens.get(token)

    async def is_allowed(self, access: Access) -> bool:
        self.asked.append(access)
        await self._answer()
        return self.allows(access)

    async def _answer(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.failure:
            raise ReviewError(self.failure)
