"""Python's asyncio, as its documentation's echo server, with a protocol: the fastest of its ways."""

import asyncio
import resource
import socket
import sys


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        one = transport.get_extra_info("socket")
        if one.family == socket.AF_INET:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data):
        self.transport.write(data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, sender):
        self.transport.sendto(data, sender)


async def main(where):
    loop = asyncio.get_running_loop()
    kind, _, path = where.partition(":")
    if kind == "udp":
        host, _, port = path.rpartition(":")
        transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=(host, int(port)))
        print("listening on udp:%s:%d" % transport.get_extra_info("sockname"), flush=True)
        await asyncio.Event().wait()
    if kind == "unix":
        server = await loop.create_unix_server(Echo, path, backlog=4096)
        print("listening on unix:" + path, flush=True)
    else:
        host, _, port = where.rpartition(":")
        server = await loop.create_server(Echo, host, int(port), backlog=4096)
        print("listening on %s:%d" % server.sockets[0].getsockname(), flush=True)
    await server.serve_forever()


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
asyncio.run(main(sys.argv[1]))
