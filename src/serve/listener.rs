//! Real listening sockets: bound, with their options set, and handed to mio.

use std::io;
use std::net::SocketAddr;

use log::warn;
use mio::net::{TcpListener, TcpStream};
use mio::{Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::acceptor::Accept;
use crate::reactor::Poller;

/// The options of listening sockets. Connections inherit those of theirs, which saves a system call each.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// Connections the kernel keeps until they are accepted (listen(2)). A short backlog makes a burst of connects
    /// crawl: what does not fit is dropped, and the peer tries again after a second.
    pub backlog: u32,
    /// The receive buffer of each connection in bytes (`SO_RCVBUF`); `None` leaves it to the kernel's tuning.
    pub recv_buffer: Option<usize>,
    /// The send buffer of each connection in bytes (`SO_SNDBUF`); `None` leaves it to the kernel's tuning.
    pub send_buffer: Option<usize>,
    /// Leave Nagle's algorithm on (RFC 896), which delays small sends; `false` sets `TCP_NODELAY`.
    pub nagle: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions { backlog: 4096, recv_buffer: None, send_buffer: None, nagle: false }
    }
}

/// A listening TCP socket in the poll.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    registry: Registry,
    /// Accepted, but the poll had no room for it; the peer is kept until it has.
    unregistered: Option<(std::net::TcpStream, SocketAddr)>,
}

impl Listener {
    /// Listens on `address`, with `token` in the poll of `registry`.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when the address is in use or needs a privilege (bind(2)).
    pub fn bind(address: SocketAddr, options: &SocketOptions, registry: &Registry, token: Token) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A server that is restarted may have connections of its former life in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // [::] means IPv6 alone, whatever the system's default, so that 0.0.0.0 can stand beside it.
            socket.set_only_v6(true)?;
        }
        socket.set_tcp_nodelay(!options.nagle)?;
        // A peer that vanished, without a word from its kernel, is found out in the end: after two hours of silence,
        // unless the system's settings say otherwise (tcp(7), on `tcp_keepalive_time`).
        socket.set_keepalive(true)?;
        // Before listening, because the window scale is settled in the handshake (tcp(7)).
        if let Some(size) = options.recv_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        if let Some(size) = options.send_buffer {
            socket.set_send_buffer_size(size)?;
        }
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpListener::from_std(socket.into());
        registry.register(&mut socket, token, mio::Interest::READABLE)?;
        Ok(Listener { socket, registry: registry.try_clone()?, unregistered: None })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Accept for Listener {
    type Stream = TcpStream;

    fn accept(&mut self, token: Token) -> io::Result<(TcpStream, SocketAddr)> {
        let (mut stream, peer) = match self.unregistered.take() {
            Some((stream, peer)) => (TcpStream::from_std(stream), peer),
            None => self.socket.accept()?,
        };
        match self.registry.register(&mut stream, token, Poller::interest()) {
            Ok(()) => Ok((stream, peer)),
            Err(error) => {
                self.unregistered = Some((stream.into(), peer));
                Err(error)
            }
        }
    }
}

/// Says so if the kernel will cut the backlog that was asked for (listen(2), on `somaxconn`).
pub(super) fn check_backlog(backlog: u32) {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    if let Some(limit) = limit.ok().and_then(|text| text.trim().parse::<u32>().ok())
        && limit < backlog
    {
        warn!(
            "the kernel cuts the backlog of {backlog} to {limit}: raise net.core.somaxconn (sysctl) to have it whole"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::fd::AsRawFd;

    use mio::Interest;
    use mio::unix::SourceFd;

    /// A connection accepted from a listener with these options.
    fn accepted(options: &SocketOptions) -> Socket {
        let poll = mio::Poll::new().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let mut listener = Listener::bind(any, options, poll.registry(), Token(0)).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        loop {
            match listener.accept(Token(1)) {
                Ok((stream, _)) => return std::net::TcpStream::from(stream).into(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn connections_inherit_the_options_of_their_listener() {
        let socket = accepted(&SocketOptions::default());
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        let options = SocketOptions {
            nagle: true,
            recv_buffer: Some(100_000),
            send_buffer: Some(50_000),
            ..SocketOptions::default()
        };
        let socket = accepted(&options);
        assert!(!socket.tcp_nodelay().unwrap());
        // Linux doubles what it is asked for (socket(7)), others do not.
        assert!([100_000, 200_000].contains(&socket.recv_buffer_size().unwrap()));
        assert!([50_000, 100_000].contains(&socket.send_buffer_size().unwrap()));
    }

    #[test]
    fn a_peer_that_cannot_be_registered_is_kept() {
        let poll = mio::Poll::new().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let mut listener = Listener::bind(any, &SocketOptions::default(), poll.registry(), Token(0)).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = loop {
            match listener.socket.accept() {
                Ok(accepted) => break accepted,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        };
        let descriptor = accepted.0.as_raw_fd();
        // Registered already, so that it cannot be.
        poll.registry().register(&mut SourceFd(&descriptor), Token(2), Interest::READABLE).unwrap();
        listener.unregistered = Some((accepted.0.into(), accepted.1));
        assert_eq!(listener.accept(Token(1)).unwrap_err().kind(), ErrorKind::AlreadyExists);
        poll.registry().deregister(&mut SourceFd(&descriptor)).unwrap();
        assert_eq!(listener.accept(Token(1)).unwrap().1, client.local_addr().unwrap());
        assert_eq!(listener.accept(Token(1)).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
