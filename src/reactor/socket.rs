//! Stream sockets of either family behind one type, and the addresses of their peers.
//!
//! The kernel treats a TCP and a Unix stream alike once they are there; what differs is how they are opened and what
//! their peers are called. This module knows that, and nothing of what is sent over them.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, Type};

use super::stream::Stream;

/// A non-blocking stream socket.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP (tcp(7)).
    Tcp(TcpStream),
    /// Within this machine (unix(7)).
    Unix(UnixStream),
}

/// Runs the same expression on either kind of stream.
macro_rules! either {
    ($socket:expr, $stream:ident => $do:expr) => {
        match $socket {
            Socket::Tcp($stream) => $do,
            Socket::Unix($stream) => $do,
        }
    };
}

impl Socket {
    /// Begins to open a TCP connection to `target` from `source`. The socket becomes writable when it is known how
    /// that went (connect(2), on `EINPROGRESS`).
    ///
    /// # Errors
    ///
    /// What the kernel reports at once, as when there are no local ports left (`EADDRNOTAVAIL`).
    pub fn connect_tcp(target: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
        let socket = socket2::Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // An urgent byte is data in its place, for a client too (RFC 6093, 3).
        socket.set_out_of_band_inline(true)?;
        if let Some(source) = source {
            defer_port(&socket)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(Socket::Tcp(TcpStream::from_std(socket.into()))),
        }
    }

    /// Opens a connection to the Unix socket with this path, at once or not at all.
    ///
    /// # Errors
    ///
    /// What the kernel reports: `WouldBlock` if the listener's backlog is full, for unlike TCP there is no kernel that would
    /// try again (unix(7)).
    pub fn connect_unix(path: &Path) -> io::Result<Socket> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&unix_address(path)?)?;
        Ok(Socket::Unix(UnixStream::from_std(socket.into())))
    }

    /// Opens a connection to the Unix socket with this path, and waits while its listener's backlog is full.
    ///
    /// # Errors
    ///
    /// What the kernel reports (connect(2)).
    pub fn connect_unix_blocking(path: &Path) -> io::Result<Socket> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.connect(&unix_address(path)?)?;
        socket.set_nonblocking(true)?;
        Ok(Socket::Unix(UnixStream::from_std(socket.into())))
    }

    /// The same socket as if it had never been registered with a poll, which a failed attempt leaves behind.
    pub fn renew(self) -> Socket {
        match self {
            Socket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream.into())),
            Socket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream.into())),
        }
    }
}

/// The address of the socket file with this path; on Linux, if it begins with `@`, of an abstract name.
///
/// # Errors
///
/// If no socket can have this path.
pub fn unix_address(path: &Path) -> io::Result<SockAddr> {
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) if cfg!(any(target_os = "linux", target_os = "android")) => {
            SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat()))
        }
        _ => SockAddr::unix(path),
    }
}

/// The path of a Unix socket's address, as [`unix_address`] takes it; empty if it has no name.
pub fn unix_path(address: &std::os::unix::net::SocketAddr) -> PathBuf {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        #[cfg(target_os = "android")]
        use std::os::android::net::SocketAddrExt;
        #[cfg(target_os = "linux")]
        use std::os::linux::net::SocketAddrExt;
        if let Some(name) = address.as_abstract_name() {
            return OsStr::from_bytes(&[b"@", name].concat()).into();
        }
    }
    address.as_pathname().map_or_else(PathBuf::new, Path::to_owned)
}

/// Lets `connect` choose the port, when the destination is known. `bind` would have to find one that is free for all
/// destinations, and runs out sooner (ip(7), `IP_BIND_ADDRESS_NO_PORT`).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn defer_port(socket: &socket2::Socket) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
    Ok(setsockopt(socket, IpBindAddressNoPort, &true)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn defer_port(_: &socket2::Socket) -> io::Result<()> {
    Ok(())
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.read(into))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        either!(self, stream => stream.shutdown_write())
    }

    fn established(&mut self) -> io::Result<bool> {
        either!(self, stream => stream.established())
    }

    fn reset_on_drop(&mut self) {
        either!(self, stream => stream.reset_on_drop())
    }

    fn short_read_is_conclusive(&self) -> bool {
        either!(self, stream => stream.short_read_is_conclusive())
    }

    fn short_write_is_conclusive(&self) -> bool {
        either!(self, stream => stream.short_write_is_conclusive())
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        either!(self, stream => registry.register(stream, token, interest))
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        either!(self, stream => registry.reregister(stream, token, interest))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        either!(self, stream => registry.deregister(stream))
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A peer at this address.
    Ip(SocketAddr),
    /// A process on this machine, which has no address of its own.
    Unix,
}

impl Origin {
    /// The address without the port; of an IPv4-mapped IPv6 address, the IPv4 address.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Origin::Ip(address) => Some(address.ip().to_canonical()),
            Origin::Unix => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Ip(address) => write!(f, "{address}"),
            Origin::Unix => write!(f, "unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_connected_to_itself_is_refused() {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.connect(&socket.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = Socket::Tcp(TcpStream::from_std(socket.into()));
        assert_eq!(stream.established().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
