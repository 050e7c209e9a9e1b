//! Where a server of this directory listens: all of them are told in the same words.

use std::fmt;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use anyhow::Context;
use echoloop::reactor::socket::unix_path;
use socket2::{Domain, Socket, Type};

/// A bound socket, which blocks.
pub enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
}

impl Listening {
    /// Binds to `127.0.0.1:0`, `udp:127.0.0.1:0` or `unix:PATH`.
    pub fn bind(address: &str) -> anyhow::Result<Self> {
        if let Some(address) = address.strip_prefix("udp:") {
            return Ok(Listening::Udp(UdpSocket::bind(address)?));
        }
        let (domain, address) = match address.strip_prefix("unix:") {
            Some(path) => (Domain::UNIX, socket2::SockAddr::unix(path)?),
            None => {
                let address: std::net::SocketAddr = address.parse().context("not an address")?;
                (Domain::IPV4, address.into())
            }
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        if domain == Domain::IPV4 {
            // The sockets that it accepts inherit it.
            socket.set_tcp_nodelay(true)?;
        }
        socket.bind(&address)?;
        socket.listen(4096)?;
        Ok(if domain == Domain::IPV4 { Listening::Tcp(socket.into()) } else { Listening::Unix(socket.into()) })
    }

    /// Makes it one that does not block.
    pub fn nonblocking(self) -> io::Result<Self> {
        match &self {
            Listening::Tcp(socket) => socket.set_nonblocking(true)?,
            Listening::Unix(socket) => socket.set_nonblocking(true)?,
            Listening::Udp(socket) => socket.set_nonblocking(true)?,
        }
        Ok(self)
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = |_| fmt::Error;
        match self {
            Listening::Tcp(socket) => write!(f, "{}", socket.local_addr().map_err(failed)?),
            Listening::Unix(socket) => write!(f, "unix:{}", unix_path(&socket.local_addr().map_err(failed)?).display()),
            Listening::Udp(socket) => write!(f, "udp:{}", socket.local_addr().map_err(failed)?),
        }
    }
}
