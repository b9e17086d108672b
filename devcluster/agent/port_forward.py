"""Port-forwarding over WebSocket, as the Python client speaks it (`v4.channel.k8s.io`).

Each port has two channels, 2i for its data and 2i + 1 for an error; a message's first byte is its channel.
The first message on each, from here, is the port's number. One connection to the pod per port, made at once;
when all of them have ended, so does the WebSocket.
"""

import asyncio
import contextlib

from aiohttp import WSMsgType, web

PROTOCOL = "v4.channel.k8s.io"
PORTS_LIMIT = 64
CHUNK = 64 * 1024
MESSAGE_LIMIT = 4 * 1024 * 1024
CONNECT_TIMEOUT_SECONDS = 5.0


async def forward(request: web.Request, *, address: str) -> web.StreamResponse:
    """Serve one request for ports of the pod at `address`."""
    try:
        ports = [int(port) for ports in request.query.getall("port", []) for port in ports.split(",")]
    except ValueError:
        return web.Response(status=400, text="bad query: port must be a number\n")
    if not 0 < len(ports) <= PORTS_LIMIT or not all(0 < port < 65536 for port in ports):
        return web.Response(status=400, text=f"name 1 to {PORTS_LIMIT} ports\n")
    socket = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=MESSAGE_LIMIT, compress=False)
    if not socket.can_prepare(request).ok:
        return web.Response(
            status=400, text=f"port-forwarding is offered over WebSocket ({PROTOCOL}), not over SPDY\n"
        )
    await socket.prepare(request)
    channels = [_Port(socket, number, port, address) for number, port in enumerate(ports)]
    for one in channels:
        await one.announce()
    serving = [asyncio.create_task(one.serve()) for one in channels]
    listening = asyncio.create_task(_listen(socket, channels))
    over = asyncio.create_task(asyncio.wait(serving))
    try:
        await asyncio.wait((over, listening), return_when=asyncio.FIRST_COMPLETED)
    finally:
        tasks = (over, *serving, listening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await socket.close()
    return socket


async def _listen(socket: web.WebSocketResponse, ports: "list[_Port]") -> None:
    """Hand each message to its port, until the other side goes."""
    async for message in socket:
        if message.type is not WSMsgType.BINARY or not message.data:
            continue
        number, kind = divmod(message.data[0], 2)
        if kind == 0 and number < len(ports):
            await ports[number].take(message.data[1:])


class _Port:
    """One port that is forwarded."""

    def __init__(self, socket: web.WebSocketResponse, number: int, port: int, address: str) -> None:
        self._socket = socket
        self._data = bytes([2 * number])
        self._error = bytes([2 * number + 1])
        self._port = port
        self._address = address
        self._writer: asyncio.Future[asyncio.StreamWriter | None] = asyncio.get_running_loop().create_future()

    async def announce(self) -> None:
        """Say on both channels which port they are for."""
        for channel in (self._data, self._error):
            await self._socket.send_bytes(channel + self._port.to_bytes(2, "little"))

    async def take(self, data: bytes) -> None:
        """Pass on what came for the pod, at its pace; lost where it does not listen."""
        writer = await asyncio.shield(self._writer)
        if writer is not None:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()

    async def serve(self) -> None:
        """Pass on what the pod says until it says no more."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(self._address, self._port)
        except (OSError, TimeoutError) as error:
            self._writer.set_result(None)
            text = f"error forwarding port {self._port} to the pod: {error or 'no answer in time'}"
            await self._socket.send_bytes(self._error + text.encode())
            return
        self._writer.set_result(writer)
        try:
            while data := await reader.read(CHUNK):
                await self._socket.send_bytes(self._data + data)
        except ConnectionError:
            return  # either side has gone
        finally:
            writer.close()
