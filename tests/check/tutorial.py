"""The tutorial's three servers, as a reader might write them: tutorial.py NUMBER PORT."""

import selectors
import socket
import sys

number, port = int(sys.argv[1]), int(sys.argv[2])


def one_message():
    with socket.create_server(("127.0.0.1", port)) as listener:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(peer.recv(1024))


def until_bye():
    with socket.create_server(("127.0.0.1", port)) as listener:
        peer, _ = listener.accept()
        with peer:
            while data := peer.recv(1024):
                peer.sendall(data)
                if data.strip() == b"bye":
                    break


def many_clients():
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port))
    listener.setblocking(False)

    def accept(_):
        peer, _ = listener.accept()
        peer.setblocking(False)
        selector.register(peer, selectors.EVENT_READ, echo)

    def echo(peer):
        data = peer.recv(1024)
        if data:
            peer.send(data)
        if not data or data.strip() == b"bye":
            selector.unregister(peer)
            peer.close()

    selector.register(listener, selectors.EVENT_READ, accept)
    while True:
        for key, _ in selector.select():
            key.data(key.fileobj)


[one_message, until_bye, many_clients][number - 1]()
