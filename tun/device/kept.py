"""The device as a fact that is kept: up, with its name, its MTU and its addresses."""

from __future__ import annotations

from ..linux.device import Tun
from ..reconciler import Fact


class DeviceFact(Fact):
    """Of either role, as it was configured last."""

    name = "device"

    def __init__(self, device: Tun) -> None:
        self._device = device

    async def look(self) -> str:
        return await self._device.difference()

    async def put_back(self) -> None:
        await self._device.restore()
