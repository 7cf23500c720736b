"""The device as a fact that is kept: up, with its name, its MTU and its addresses."""

from __future__ import annotations

from collections.abc import Callable

from cryprq_proxy.base.changes import Changes

from ..reconciler import Fact
from ..system import Device


class DeviceFact(Fact):
    """Of either role, as it was configured last."""

    name = "device"

    def __init__(self, device: Device, changes: Callable[[], Changes]) -> None:
        """`changes` tells of changes of devices and addresses."""
        self.changes = changes
        self._device = device

    async def look(self) -> str:
        return await self._device.difference()

    async def put_back(self) -> None:
        await self._device.restore()
