//! What a connection needs of its socket: a non-blocking byte stream, and what a short read or write proves of it.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

/// A non-blocking byte stream: `read` and `write` fail with `WouldBlock` instead of waiting.
pub trait Stream: Read + Write {
    /// Closes the sending direction, after what has been written (`shutdown(2)` with `SHUT_WR`).
    ///
    /// # Errors
    ///
    /// What the socket reports, as when the peer has reset the connection.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Whether a connection that is being opened has been established: asked when the socket becomes writable
    /// (connect(2), on `EINPROGRESS`).
    ///
    /// # Errors
    ///
    /// Why the connection could not be opened, as when nobody listens.
    fn established(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Has the peer told, when the socket is dropped, that bytes are missing: by a reset instead of an end, where there
    /// is such a thing (RFC 1122, 4.2.2.13).
    fn reset_on_drop(&mut self) {}

    /// Whether a read that leaves room in the buffer proves that nothing more has arrived, so that the read that would
    /// only say WouldBlock can be saved. It does not where edges are emulated (see [`EDGES`]), on Unix sockets, where a
    /// read ends behind bytes that carry descriptors (unix(7)), or over a stream with records of its own. That urgent
    /// data ends a read too is the connection's business, where the poll can tell of it.
    fn short_read_is_conclusive(&self) -> bool {
        false
    }

    /// Whether a write that took a part proves that there is no room for more.
    fn short_write_is_conclusive(&self) -> bool {
        false
    }
}

/// Whether the poll delivers edges of the kernel's (epoll, kqueue). Where mio makes them up from levels (its `poll(2)`
/// fallback), the next edge is armed by WouldBlock alone, and anything that saves the call that says so would wait for
/// ever (tokio PR 5881).
pub const EDGES: bool = cfg!(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "ios",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly"
)) && !cfg!(mio_unsupported_force_poll_poll);

/// Whether the poll tells of urgent data (`EPOLLPRI`). Where it does not, a short read over TCP proves nothing.
pub const TELLS_URGENT: bool = cfg!(any(target_os = "linux", target_os = "android"));

impl Stream for mio::net::TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn established(&mut self) -> io::Result<bool> {
        if let Some(error) = self.take_error()? {
            return Err(error);
        }
        match self.peer_addr() {
            // Where nobody listens on a port of the ephemeral range, a socket may connect to itself (RFC 9293, 3.5).
            Ok(peer) if self.local_addr()? == peer => {
                Err(io::Error::new(ErrorKind::ConnectionRefused, "nobody listens: the socket connected to itself"))
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn reset_on_drop(&mut self) {
        // It fails on a socket that is reset already, and then there is nothing to tell.
        let _ = socket2::SockRef::from(&*self).set_linger(Some(Duration::ZERO));
    }

    fn short_read_is_conclusive(&self) -> bool {
        EDGES && TELLS_URGENT
    }

    fn short_write_is_conclusive(&self) -> bool {
        EDGES
    }
}

impl Stream for mio::net::UnixStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn short_write_is_conclusive(&self) -> bool {
        EDGES
    }
}
