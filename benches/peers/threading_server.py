"""Python with a thread for each connection, as sockets tutorials have it."""

import resource
import socket
import threading


def echo(peer):
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := peer.recv(65536):
                peer.sendall(data)
        except ConnectionError:
            pass


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
threading.stack_size(64 * 1024)
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
print("listening on %s:%d" % listener.getsockname(), flush=True)
while True:
    threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
