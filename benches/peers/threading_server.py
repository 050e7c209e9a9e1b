"""Python with a thread for each connection, as sockets tutorials have it."""

import resource
import socket
import sys
import threading


def echo(peer):
    with peer:
        if peer.family == socket.AF_INET:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := peer.recv(65536):
                peer.sendall(data)
        except ConnectionError:
            pass


def datagrams(host, port):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((host, port))
    print("listening on udp:%s:%d" % one.getsockname(), flush=True)
    while True:
        data, sender = one.recvfrom(65536)
        one.sendto(data, sender)


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
threading.stack_size(64 * 1024)
kind, _, path = sys.argv[1].partition(":")
if kind == "udp":
    host, _, port = path.rpartition(":")
    datagrams(host, int(port))
if kind == "unix":
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(4096)
    print("listening on unix:" + path, flush=True)
else:
    host, _, port = sys.argv[1].rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=4096)
    print("listening on %s:%d" % listener.getsockname(), flush=True)
while True:
    threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
