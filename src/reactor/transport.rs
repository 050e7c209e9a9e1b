//! What a protocol can do with one of its connections, during a call.

use std::io;
use std::time::Instant;

use log::trace;
use mio::Token;

use super::close_reason::CloseReason;
use super::connection::{Connection, Input, LINGER_TIMEOUT, Received};
use super::counters::Counters;
use super::settings::{Label, Settings};
use super::stream::Stream;
use super::timer_wheel::Millis;
use crate::count::counted;

/// The time of the turn, in both of its forms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub instant: Instant,
    pub millis: Millis,
}

/// One connection, as its protocol sees it during a call.
pub struct Transport<'a, S> {
    pub(super) connection: &'a mut Connection<S>,
    pub(super) counters: &'a mut Counters,
    token: Token,
    now: Now,
    pub(super) settings: &'a Settings,
    /// Why the connection is closed when the protocol's call returns.
    end: Option<CloseReason>,
}

impl<'a, S: Stream> Transport<'a, S> {
    pub(super) fn new(
        connection: &'a mut Connection<S>,
        counters: &'a mut Counters,
        key: usize,
        now: Now,
        settings: &'a Settings,
    ) -> Self {
        let token = Token(settings.first_token + key);
        Transport { connection, counters, token, now, settings, end: None }
    }

    /// Sends `bytes`: straight to the socket, and what it does not take waits until it is writable again. A failure is
    /// not reported here; the connection is closed then as soon as the protocol's call returns.
    ///
    /// After [`close`](Transport::close) or [`shutdown_write`](Transport::shutdown_write) nothing is sent.
    pub fn write(&mut self, bytes: &[u8]) {
        if !self.connection.is_open() || self.end.is_some() {
            return;
        }
        match self.connection.send(bytes, self.now.millis) {
            Ok(taken) => {
                self.counters.sent_bytes += taken as u64;
                if taken < bytes.len() {
                    self.counters.waiting_bytes += (bytes.len() - taken) as u64;
                    self.counters.partial_sends += 1;
                    trace!(
                        "{}: sent {taken} of {}; {} wait for WRITABLE",
                        self.label(),
                        bytes.len(),
                        self.connection.waiting()
                    );
                } else {
                    trace!("{}: sent {taken} of {taken}", self.label());
                }
            }
            Err(error) => self.end = Some(error.into()),
        }
    }

    /// Closes the sending side alone, after what has been written has left, and goes on receiving.
    pub fn shutdown_write(&mut self) {
        self.connection.shutdown_write();
    }

    /// Closes the connection, after what has been written has left. What the peer still sends is discarded, and what it
    /// may still take and send has a deadline ([`CLOSE_TIMEOUT`](super::CLOSE_TIMEOUT),
    /// [`LINGER_TIMEOUT`]). A peer that had ended its side before takes what waits in its own time; that is bounded by
    /// [`idle_timeout`](Settings::idle_timeout), or by the protocol's [`deadline`](super::Protocol::deadline).
    pub fn close(&mut self) {
        let was_closing = self.connection.is_closing();
        self.connection.close(self.now.millis);
        if !was_closing && self.connection.waiting() > 0 {
            trace!(
                "{}: closing once all is sent: {} waiting",
                self.label(),
                counted(self.connection.waiting(), "byte")
            );
        }
    }

    /// Drops the connection as soon as the protocol's call returns, whatever waits. The peer is told by a reset.
    pub fn abort(&mut self) {
        self.end.get_or_insert(CloseReason::Aborted);
    }

    /// Asks for [`flushed`](super::Protocol::flushed) to be called in the next turn, though nothing waits: for a protocol
    /// that has more to write than is fair in one turn, to a peer that takes it all.
    pub fn call_again(&mut self) {
        self.connection.call_again();
    }

    /// Reads nothing more until [`resume_reading`](Transport::resume_reading), so that the sender is pushed back and
    /// what this side must remember stays bounded. Meanwhile the peer's end of file and its reset are not seen either.
    pub fn pause_reading(&mut self) {
        self.connection.pause_reading();
    }

    /// Goes on reading.
    pub fn resume_reading(&mut self) {
        self.connection.resume_reading();
    }

    /// Whether what is written is sent: not before the connection is open, nor once it was closed.
    pub fn is_open(&self) -> bool {
        self.connection.is_open() && self.end.is_none()
    }

    /// The number of bytes that were written and wait for the socket to take them.
    pub fn waiting(&self) -> usize {
        self.connection.waiting()
    }

    /// The connection's token.
    pub fn token(&self) -> Token {
        self.token
    }

    /// When this turn of the loop began.
    pub fn now(&self) -> Instant {
        self.now.instant
    }

    /// The connection's socket, to ask it something. Its reading and writing belong to the reactor.
    pub fn socket(&self) -> &S {
        &self.connection.socket
    }

    pub(super) fn read_size(&self) -> usize {
        self.connection.read_size(self.settings.read_size, self.settings.max_read_size)
    }

    pub(super) fn grow(&mut self, count: usize) {
        let before = self.read_size();
        self.connection.grow(count, self.settings.read_size, self.settings.max_read_size);
        let size = self.read_size();
        if size > before {
            trace!("{}: reads grow from {before} to {size} bytes: the peer fills them", self.label());
        }
    }

    pub(super) fn receive(&mut self, into: &mut [u8]) -> io::Result<Received> {
        let received = self.connection.receive(into, self.now.millis)?;
        match received {
            Received::Bytes { count, drained } => trace!(
                "{}: read {count} of {}{}",
                self.label(),
                into.len(),
                if drained { " (short: drained)" } else { "" }
            ),
            Received::WouldBlock => {
                self.counters.would_blocks += 1;
                trace!("{}: read: would block", self.label());
            }
            Received::End => trace!("{}: read 0: the peer has closed its side", self.label()),
        }
        Ok(received)
    }

    /// Sends what waits. Returns whether that was all of it.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let waited = self.connection.waiting();
        let flushed = self.connection.flush(self.now.millis);
        let left = self.connection.waiting();
        self.counters.waiting_bytes -= (waited - left) as u64; // before an error, too, some may have left
        let taken = flushed?;
        if waited == 0 || taken == 0 {
            return Ok(false);
        }
        self.counters.sent_bytes += taken as u64;
        if left > 0 {
            self.counters.partial_sends += 1;
        }
        trace!(
            "{}: WRITABLE: sent {taken} of {waited}; {}",
            self.label(),
            if left > 0 { "the rest goes on waiting" } else { "flushed, the buffer is given back" }
        );
        Ok(left == 0)
    }

    pub(super) fn settle(&mut self) -> io::Result<bool> {
        let was_finishing = self.connection.is_closing() && !self.connection.is_shut();
        let over = self.connection.settle(self.now.millis)?;
        if was_finishing && self.connection.is_shut() && !over {
            if self.connection.closing_due().is_some() {
                trace!("{}: shut down; lingering for up to {LINGER_TIMEOUT:?} until the peer's end", self.label());
            } else {
                trace!("{}: shut down; what comes is still read", self.label());
            }
        }
        Ok(over)
    }

    /// Whether nothing is read because bytes wait to be sent.
    pub(super) fn is_held_up(&self) -> bool {
        self.connection.waiting() > 0 && self.connection.input() == Input::Open
    }

    /// What the log calls the connection.
    pub(super) fn label(&self) -> Label {
        self.settings.label(self.token.0 - self.settings.first_token)
    }

    /// Whether the protocol's call has ended the connection, by a write that failed or by aborting it.
    pub(super) fn check(&mut self) -> Result<(), CloseReason> {
        self.end.take().map_or(Ok(()), Err)
    }
}
