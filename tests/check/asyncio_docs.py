"""The echo servers in the documentation of Python's asyncio, as they stand there but for the port: asyncio_docs.py KIND PORT.

https://docs.python.org/3/library/asyncio-stream.html, asyncio-protocol.html; examples are under the Zero-Clause BSD license.
The last one is the first, in a loop, which is what its readers write next.
"""

import asyncio
import sys

kind, port = sys.argv[1], int(sys.argv[2])


async def handle_echo(reader, writer):
    data = await reader.read(100)
    message = data.decode()
    addr = writer.get_extra_info('peername')

    print(f"Received {message!r} from {addr!r}")

    print(f"Send: {message!r}")
    writer.write(data)
    await writer.drain()

    print("Close the connection")
    writer.close()
    await writer.wait_closed()


async def streams():
    server = await asyncio.start_server(
        handle_echo, '127.0.0.1', port)

    async with server:
        await server.serve_forever()


class EchoServerProtocol(asyncio.Protocol):
    def connection_made(self, transport):
        peername = transport.get_extra_info('peername')
        print('Connection from {}'.format(peername))
        self.transport = transport

    def data_received(self, data):
        message = data.decode()
        print('Data received: {!r}'.format(message))

        print('Send: {!r}'.format(message))
        self.transport.write(data)

        print('Close the client socket')
        self.transport.close()


async def protocol():
    loop = asyncio.get_running_loop()

    server = await loop.create_server(
        EchoServerProtocol,
        '127.0.0.1', port)

    async with server:
        await server.serve_forever()


class UdpEchoServerProtocol:
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        message = data.decode()
        print('Received %r from %s' % (message, addr))
        print('Send %r to %s' % (message, addr))
        self.transport.sendto(data, addr)


async def udp():
    loop = asyncio.get_running_loop()

    transport, protocol = await loop.create_datagram_endpoint(
        UdpEchoServerProtocol,
        local_addr=('127.0.0.1', port))

    try:
        await asyncio.sleep(3600)  # Serve for 1 hour.
    finally:
        transport.close()


async def in_a_loop(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def loop():
    server = await asyncio.start_server(in_a_loop, '127.0.0.1', port)

    async with server:
        await server.serve_forever()


asyncio.run({'streams': streams, 'protocol': protocol, 'udp': udp, 'loop': loop}[kind]())
