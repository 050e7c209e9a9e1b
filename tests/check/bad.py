"""Echo servers that are wrong, each in one way: bad.py KIND PORT."""

import asyncio
import codecs
import os
import queue
import selectors
import signal
import socket
import struct
import sys
import threading
import time

kind, port = sys.argv[1], int(sys.argv[2])


def listen(backlog=512):
    return socket.create_server(("127.0.0.1", port), backlog=backlog)


def threads(serve, listener=None):
    """A thread for each connection."""
    listener = listener or listen()
    while True:
        peer = listener.accept()[0]
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=quietly, args=(serve, peer), daemon=True).start()


def quietly(serve, peer):
    with peer:
        try:
            serve(peer)
        except OSError:
            pass


def echo(peer):
    while data := peer.recv(65536):
        peer.sendall(data)


def lines(peer):
    """Waits for a newline."""
    stream = peer.makefile("rwb")
    for line in stream:
        stream.write(line)
        stream.flush()


def whole(peer):
    """Waits for two bytes at least, though one may be all there is."""
    while data := peer.recv(2, socket.MSG_WAITALL):
        peer.sendall(data)
        if more := peer.recv(65536, socket.MSG_DONTWAIT) if ready(peer) else b"":
            peer.sendall(more)


def ready(peer, within=0.002):
    with selectors.DefaultSelector() as selector:
        selector.register(peer, selectors.EVENT_READ)
        return bool(selector.select(within))


def first_segment(peer):
    """Answers the first read alone, however it was cut."""
    if data := peer.recv(65536):
        peer.sendall(data)
    while peer.recv(65536):
        pass


def buffer_only(peer):
    """A message is what one read of 1024 bytes brings; the rest of it is thrown away."""
    while data := peer.recv(1024):
        peer.sendall(data)
        try:
            while peer.recv(65536, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass


def shuffled(peer):
    """A thread for each message."""
    lock = threading.Lock()
    count = 0

    def answer(data, late):
        time.sleep(0.01 * late)
        with lock:
            peer.sendall(data)

    while data := peer.recv(65536):
        count += 1
        halves = [data] if len(data) < 2 or count % 7 else [data[: len(data) // 2], data[len(data) // 2 :]]
        for late, half in enumerate(reversed(halves)):
            answer(half, late)


def altered(alter):
    """Echoes what a function makes of each read."""

    def serve(peer):
        while data := peer.recv(65536):
            if data := alter(data):
                peer.sendall(data)

    return serve


def negotiates(data):
    """Takes telnet's three-byte commands for itself."""
    out = bytearray()
    at = 0
    while at < len(data):
        if data[at] == 255 and at + 2 < len(data) and 251 <= data[at + 1] <= 254:
            at += 3
        else:
            out.append(data[at])
            at += 1
    return bytes(out)


def decodes(peer):
    """Decodes, and waits for the rest of a character that is not whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    while data := peer.recv(65536):
        peer.sendall(decoder.decode(data).encode("utf-8", "surrogateescape"))


def segments(peer):
    """Messages that wait in many small segments are lost: its queue of them is short."""
    before = (0, 0)
    while data := peer.recv(65536):
        if len(data) < 1000:
            time.sleep(0.01)
        info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        # tcpi_bytes_received and tcpi_data_segs_in (include/uapi/linux/tcp.h)
        now = struct.unpack_from("Q", info, 128)[0], struct.unpack_from("I", info, 152)[0]
        size, count = now[0] - before[0], now[1] - before[1]
        before = now
        if count > 5 and 5000 < size < 4000 * count:
            while ready(peer, 0.02) and peer.recv(65536):
                pass
            continue
        peer.sendall(data)


def partial(peer):
    """send() takes a part, and its return value is not looked at."""
    peer.setblocking(False)
    while True:
        with selectors.DefaultSelector() as selector:
            selector.register(peer, selectors.EVENT_READ)
            selector.select()
        data = peer.recv(65536)
        if not data:
            return
        try:
            peer.send(data)
        except BlockingIOError:
            pass


def eof_drops(peer):
    """Writes blocks, and at the end forgets what is no whole block: a buffer that is never flushed."""
    out = b""
    while data := peer.recv(65536):
        out += data
        whole = len(out) - len(out) % 5000
        peer.sendall(out[:whole])
        out = out[whole:]
        if out and not ready(peer, 0.3):
            peer.sendall(out)
            out = b""


def no_end(peer):
    """The end of the peer is not looked at."""
    while True:
        data = peer.recv(65536)
        if data:
            peer.sendall(data)
        else:
            time.sleep(0.05)
            peer.send(b"")


def careless(peer):
    """Does not expect that a connection is over before anything was read."""
    try:
        data = peer.recv(65536)
    except ConnectionResetError:
        os._exit(1)
    while data:
        peer.sendall(data)
        data = peer.recv(65536)


def late_banner(peer):
    """Says something to whoever is silent for long."""
    if not ready(peer, 0.5):
        peer.sendall(b"hello?\n")
    echo(peer)


def repeats(peer):
    """Sends a long echo again when nothing has followed it."""
    while data := peer.recv(65536):
        peer.sendall(data)
        if len(data) > 50 and not ready(peer, 0.2):
            peer.sendall(data)


def no_end_of_much(peer):
    """Forgets to end a connection over which much has come."""
    count = 0
    while data := peer.recv(65536):
        peer.sendall(data)
        count += len(data)
    if count > 100_000:
        time.sleep(600)


def epipe(peer):
    """Expects a reset while it reads, and none while it sends."""
    while data := peer.recv(1024):
        try:
            peer.sendall(data)
        except BrokenPipeError:
            os._exit(1)


def in_parts(peer):
    """Sends the last byte of each read apart and, for the first two seconds, late."""
    slow_until = time.monotonic() + 2
    while data := peer.recv(65536):
        peer.sendall(data[:-1])
        if time.monotonic() < slow_until:
            time.sleep(0.03)
        peer.sendall(data[-1:])


def forking():
    """A process for each connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = listen()
    while True:
        peer = listener.accept()[0]
        if os.fork() == 0:
            quietly(echo, peer)
            os._exit(0)
        peer.close()


def in_two(peer):
    """Sends each echo in two parts, as whoever writes a header first does."""
    while data := peer.recv(65536):
        peer.sendall(data[:1])
        time.sleep(0.001)
        peer.sendall(data[1:])


def hoards(peer):
    """Takes eighteen megabytes before it pushes back."""
    room = threading.Semaphore(18 * 16)
    waiting = queue.Queue()

    def send():
        while data := waiting.get():
            try:
                peer.sendall(data)
            except OSError:
                pass
            room.release()

    threading.Thread(target=send, daemon=True).start()
    while data := peer.recv(65536):
        room.acquire()
        waiting.put(data)
    waiting.put(b"")


def limited(most):
    """Closes all connections after the first few."""
    listener = listen()
    count = 0
    while True:
        peer = listener.accept()[0]
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count += 1
        if count > most:
            peer.close()
            continue
        threading.Thread(target=quietly, args=(echo, peer), daemon=True).start()


def impatient(peer):
    """Gives up after a second of silence."""
    peer.settimeout(1)
    try:
        echo(peer)
    except TimeoutError:
        pass


def one_thread(wrong):
    """All connections on one selector, and something wrong with it."""
    listener = listen()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                peer = listener.accept()[0]
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(peer, selectors.EVENT_READ)
                continue
            peer = key.fileobj
            try:
                while data := peer.recv(65536):
                    while wrong == "stuck" and b"\0" in data:  # it goes round for ever
                        time.sleep(0.1)
                    peer.sendall(data)  # blocks
                    if wrong != "greedy":
                        break
                    peer.settimeout(0.4)
                ended = not data
            except TimeoutError:
                ended = False
                peer.settimeout(None)
            except OSError as error:
                if wrong == "reset" and isinstance(error, ConnectionResetError):
                    raise
                ended = True
            if ended:
                selector.unregister(peer)
                peer.close()


def unbounded():
    """asyncio, and nobody waits until what was written has left."""

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    async def main():
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    asyncio.run(main())


def sequential():
    listener = listen()
    while True:
        quietly(echo, listener.accept()[0])


def once():
    listener = listen()
    peer = listener.accept()[0]
    listener.close()
    quietly(echo, peer)


def few(count):
    """So many connections at once, and no more."""
    room = threading.Semaphore(count)

    def serve(peer):
        if room.acquire(blocking=False):
            try:
                echo(peer)
            finally:
                room.release()

    threads(serve)


def leak(count):
    """Sockets are not closed when the peer has; after so many there are no more."""
    kept = []
    listener = listen()
    while True:
        peer = listener.accept()[0]
        kept.append(peer)
        if len(kept) > count:
            peer.close()
            continue

        def serve(peer=peer):
            try:
                echo(peer)
                peer.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()


def burst():
    """At most three are accepted a second."""
    listener = listen(1)

    while True:
        peer = listener.accept()[0]
        threading.Thread(target=quietly, args=(echo, peer), daemon=True).start()
        time.sleep(0.01)


def word(how):
    def serve(peer):
        rest = b""
        while data := peer.recv(65536):
            peer.sendall(data)
            if how == "split":
                if data.strip() == b"bye":
                    return
                continue
            rest += data
            while b"\n" in rest:
                line, rest = rest.split(b"\n", 1)
                if how == "ends" and line.endswith(b"bye") or line == b"bye" and how != "never":
                    return

    threads(serve)


def udp(how):
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.bind(("127.0.0.1", port))
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    first = None
    count = 0
    while True:
        data, peer = endpoint.recvfrom(1024 if how == "short" else 65536)
        count += 1
        if how == "silent":
            continue
        if how == "joined":
            # What has come meanwhile is taken for the rest of it.
            time.sleep(0.002)
            endpoint.setblocking(False)
            try:
                while more := endpoint.recvfrom(65536):
                    data += more[0]
            except BlockingIOError:
                pass
            endpoint.setblocking(True)
        first = first or peer
        if how == "ascii":
            data = bytes(byte & 127 for byte in data)
        if how == "empty" and not data:
            continue
        if how == "low" and peer[1] < 1024:
            continue
        if how == "nul":
            data = data.rstrip(b"\0")
        if how == "slow":
            time.sleep(0.05)
        if how == "other" or how == "fifth" and count % 5 == 0:
            other.sendto(data, peer)
        elif how == "first":
            endpoint.sendto(data, first)
        else:
            endpoint.sendto(data, peer)
            if how == "twice":
                endpoint.sendto(data, peer)


def spin():
    threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
    threads(echo)


def forgets_files():
    """Opens a file for each connection, and does not close it."""
    kept = []

    def serve(peer):
        kept.append(os.open("/dev/null", os.O_RDONLY))
        echo(peer)

    threads(serve)


def fat():
    kept = []

    def serve(peer):
        kept.append(bytearray(b"x" * (1 << 20)))
        echo(peer)

    threads(serve)


signal.signal(signal.SIGPIPE, signal.SIG_DFL if kind == "sigpipe" else signal.SIG_IGN)
{
    "honest": lambda: threads(echo),
    "lines": lambda: threads(lines),
    "whole": lambda: threads(whole),
    "first": lambda: threads(first_segment),
    "buffer": lambda: threads(buffer_only),
    "shuffled": lambda: threads(shuffled),
    "partial": lambda: threads(partial),
    "eof": lambda: threads(eof_drops),
    "no-end": lambda: threads(no_end),
    "late-banner": lambda: threads(late_banner),
    "repeats": lambda: threads(repeats),
    "two-thousand": lambda: threads(altered(lambda data: data[:1990] if len(data) == 2000 else data)),
    "nul-tail": lambda: threads(altered(lambda data: data.rstrip(b"\0") or data)),
    "adds-nul": lambda: threads(altered(lambda data: data + b"\0")),
    "bom": lambda: threads(altered(lambda data: data.removeprefix(codecs.BOM_UTF8))),
    "no-end-of-much": lambda: threads(no_end_of_much),
    "epipe": lambda: threads(epipe),
    "in-parts": lambda: threads(in_parts),
    "forking": forking,
    "impatient": lambda: threads(impatient),
    "blocking": lambda: one_thread("blocking"),
    "greedy": lambda: one_thread("greedy"),
    "reset": lambda: one_thread("reset"),
    "sigpipe": lambda: threads(in_two),
    "careless": lambda: threads(careless),
    "limited": lambda: limited(10),
    "hoards": lambda: threads(hoards),
    "forgets-files": forgets_files,
    "segments": lambda: threads(segments),
    "crlf": lambda: threads(altered(lambda data: data.replace(b"\r\n", b"\n"))),
    "nul": lambda: threads(altered(lambda data: data.rstrip(b"\0"))),
    "telnet": lambda: threads(altered(negotiates)),
    "decodes": lambda: threads(decodes),
    "signed": lambda: threads(altered(lambda data: data.replace(b"\x90", b"\x10"))),
    "banner": lambda: threads(lambda peer: (peer.sendall(b"220 ready\r\n"), echo(peer))),
    "unbounded": unbounded,
    "stuck": lambda: one_thread("stuck"),
    "sequential": sequential,
    "once": once,
    "few": lambda: few(20),
    "leak": lambda: leak(300),
    "burst": burst,
    "spin": spin,
    "fat": fat,
    "word-split": lambda: word("split"),
    "word-ends": lambda: word("ends"),
    "word-never": lambda: word("never"),
    "word": lambda: word("equal"),
    **{f"udp-{how}": (lambda how=how: udp(how)) for how in ["honest", "short", "ascii", "empty", "low", "other", "first", "twice", "silent", "joined", "fifth", "nul", "slow"]},
}[kind]()
