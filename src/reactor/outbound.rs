//! The bytes that a `send` did not take.
//!
//! `send(2)` on a non-blocking socket takes what the kernel has room for and says how much that was. The rest waits
//! here, in order, until the socket reports WRITABLE. A connection for which nothing waits holds no buffer at all:
//! an empty `Outbound` is one null pointer, and a buffer that has been drained is given back at once.
//!
//! When to drain is the connection's business.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use super::pause::uninterrupted;
use super::stream::Stream;

/// A queue of bytes waiting for room in the socket's send buffer.
///
/// The box keeps an idle connection small: 8 bytes instead of the queue's 32.
#[derive(Debug, Default)]
#[allow(clippy::box_collection)]
pub(super) struct Outbound(Option<Box<VecDeque<u8>>>);

/// What one attempt to write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The socket took everything.
    All,
    /// The socket took this many bytes and has no room for more: WRITABLE will be reported when it has.
    Part(usize),
}

impl Outbound {
    /// The number of bytes that wait.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |bytes| bytes.len())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Puts `bytes` behind those that wait already.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` if there is none for them.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            let waiting = self.0.get_or_insert_default();
            waiting.try_reserve(bytes.len()).map_err(|_| ErrorKind::OutOfMemory)?;
            waiting.extend(bytes);
        }
        Ok(())
    }

    /// Writes what waits to `socket`, as far as it takes it, and returns how many bytes it took.
    ///
    /// # Errors
    ///
    /// What the socket reports, WouldBlock and Interrupted excepted. The bytes it had taken by then are gone from
    /// the queue.
    pub fn drain_into(&mut self, socket: &mut impl Stream) -> io::Result<usize> {
        let mut total = 0;
        while let Some(waiting) = &mut self.0 {
            // A `VecDeque` may wrap around; one contiguous piece a call keeps a scripted socket simple, and the
            // queue is contiguous anyway unless bytes were pushed behind others that had been partly sent.
            let piece = waiting.as_slices().0;
            let offered = piece.len();
            let sent = write(socket, piece)?;
            let taken = match sent {
                Sent::All => offered,
                Sent::Part(taken) => taken,
            };
            total += taken;
            waiting.drain(..taken);
            if waiting.is_empty() {
                self.0 = None;
            } else if sent != Sent::All {
                break;
            }
        }
        Ok(total)
    }
}

/// Writes `bytes` until the socket has taken all of them or has no room left.
///
/// This is the one place where a partial `send` is seen. Where a short write proves the send buffer full, the next
/// `send`, which could only say WouldBlock, is saved (epoll(7), on EPOLLET); elsewhere only WouldBlock counts.
///
/// # Errors
///
/// What the socket reports, WouldBlock and Interrupted excepted; a socket that takes no byte and reports no error
/// is an error of its own (`WriteZero`), for WRITABLE would never come.
pub(super) fn write(socket: &mut impl Stream, bytes: &[u8]) -> io::Result<Sent> {
    let mut taken = 0;
    while taken < bytes.len() {
        match uninterrupted(|| socket.write(&bytes[taken..])) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => {
                taken += n;
                if socket.short_write_is_conclusive() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(if taken == bytes.len() { Sent::All } else { Sent::Part(taken) })
}
