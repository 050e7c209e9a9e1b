//! One peer's state machine.
//!
//! A `Connection` owns a non-blocking socket and everything that must be remembered about it between two events:
//! whether it may still hold bytes to read, the bytes that a `send` did not take, and how far its two directions have got
//! towards the end. Each method makes one step and says what came of it; none of them blocks, loops without end, or trusts
//! that readiness was real. It touches the world only through [`Stream`], so that a test can be the kernel.
//!
//! ```text
//!  input:   open ──eof──▶ ended            output:  connecting ─▶ open ──close──▶ finishing ──flushed──▶ shut
//!           ▲  └─close─▶ discarded ─eof─▶ ended                    (after `close` before eof, a deadline bounds both)
//!           └──▶ paused ───close───▲
//! ```

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::outbound::{self, Outbound, Sent};
use super::pause::uninterrupted;
use super::stream::Stream;
use super::timer_wheel::Millis;

/// How long a connection that has been closed, and has sent everything, waits for the peer's end before it is dropped. A
/// bound is needed whatever the peer does, for it may never close, or go on sending.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the peer of a connection that has been closed may take to read what still waits for it.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The receiving direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Bytes are received for the protocol.
    Open,
    /// Nothing is read: the protocol has asked for that, and TCP pushes back.
    Paused,
    /// We have closed: bytes are received and discarded, until the peer closes its side.
    Discarded,
    /// The peer has closed its side, and everything before that has been received.
    Ended,
    /// The peer has closed its side after we had.
    EndedAfterClose,
}

/// The sending direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// The connection is still being opened.
    Connecting,
    /// More may be sent.
    Open,
    /// Nothing more will be sent than what waits.
    Finishing,
    /// Our end of file has been sent.
    Shut,
}

/// What one `receive` came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// This many bytes; `drained` if they are known to be all there was.
    Bytes { count: usize, drained: bool },
    /// Nothing, for now.
    WouldBlock,
    /// The peer has closed its side.
    End,
}

/// A time in hundredths of a second, as far as that has room.
fn hundredths(time: Millis) -> u32 {
    (time / 10) as u32
}

/// One peer's socket, and what must be remembered about it.
#[derive(Debug)]
pub(super) struct Connection<S> {
    pub socket: S,
    outbound: Outbound,
    /// When a byte last moved, in either direction; once it is closing, when this stage of that began.
    pub moved_at: Millis,
    /// When it was opened, in hundredths of a second: in 32 bits there is room for more than a year.
    opened_at: u32,
    input: Input,
    output: Output,
    /// The last read did not find the end of what has arrived. Edge-triggered polls report an edge once: only a
    /// read that comes back empty or short may clear this, whatever later events say.
    readable: bool,
    /// No send has come short since the last WRITABLE.
    writable: bool,
    /// An event has said something after which a short read proves nothing: that the peer has closed its side, so that
    /// the end of the stream is still to be read and no further edge will announce it (tokio PR 4840), or that urgent
    /// data has come, in front of which a read ends (tcp(7)). A read that says WouldBlock clears it.
    short_read_is_inconclusive: bool,
    /// The protocol wants to be called in the next turn, though nothing waits.
    call_again: bool,
    /// Its key is in the ready queue.
    pub queued: bool,
    /// How many times the size of its reads has been doubled.
    growth: u8,
}

impl<S: Stream> Connection<S> {
    /// A connection over `socket`, which is being opened still if `connecting`.
    pub fn new(socket: S, connecting: bool, now: Millis) -> Self {
        Connection {
            socket,
            outbound: Outbound::default(),
            moved_at: now,
            opened_at: hundredths(now),
            input: Input::Open,
            output: if connecting { Output::Connecting } else { Output::Open },
            readable: false,
            writable: !connecting,
            short_read_is_inconclusive: false,
            call_again: false,
            queued: false,
            growth: 0,
        }
    }

    /// Notes what a poll reported. All of it is hints: a stale event of a predecessor in the same slab slot does no
    /// harm, for every step survives WouldBlock.
    pub fn note(&mut self, readable: bool, writable: bool, short_read_is_inconclusive: bool) {
        self.readable |= readable | short_read_is_inconclusive;
        self.writable |= writable;
        self.short_read_is_inconclusive |= short_read_is_inconclusive;
    }

    /// For how long it has been there, in hundredths of a second.
    pub fn age(&self, now: Millis) -> u64 {
        hundredths(now).wrapping_sub(self.opened_at).into()
    }

    pub fn input(&self) -> Input {
        self.input
    }

    pub fn is_connecting(&self) -> bool {
        self.output == Output::Connecting
    }

    /// The number of bytes that wait for WRITABLE.
    pub fn waiting(&self) -> usize {
        self.outbound.len()
    }

    /// Whether a step can be made without waiting for an event. `full_duplex` lets a connection be read while bytes
    /// for its peer wait.
    pub fn has_work(&self, full_duplex: bool) -> bool {
        if self.is_connecting() {
            return self.writable; // READABLE says nothing about how the opening went
        }
        self.may_receive(full_duplex) || self.may_flush() || self.may_call_again()
    }

    /// Whether to read: not while bytes wait to be sent, for a peer that sends and does not read would make them
    /// grow without bound. This way its memory is bounded by one read, and TCP pushes back on it. What is discarded takes
    /// no memory, and a peer that is still sending may need that before it reads.
    pub fn may_receive(&self, full_duplex: bool) -> bool {
        self.readable
            && match self.input {
                Input::Open => full_duplex || self.outbound.is_empty(),
                Input::Discarded => true,
                Input::Paused | Input::Ended | Input::EndedAfterClose => false,
            }
    }

    fn may_call_again(&self) -> bool {
        self.call_again && self.is_open() && self.outbound.is_empty()
    }

    /// Has the protocol called in the next turn, though nothing waits.
    pub fn call_again(&mut self) {
        self.call_again = true;
    }

    /// Whether the protocol is to be called though nothing waits; that is over with this.
    pub fn take_call_again(&mut self) -> bool {
        self.may_call_again() && std::mem::take(&mut self.call_again)
    }

    fn may_flush(&self) -> bool {
        self.writable && !self.outbound.is_empty()
    }

    /// How many bytes to read at once: `smallest`, doubled up to `largest` for a peer that has been sending much and taking
    /// whole what it was sent. That makes bulk cheaper, and a peer that has never read fast gets no more of our memory.
    pub fn read_size(&self, smallest: usize, largest: usize) -> usize {
        (smallest << self.growth).min(largest)
    }

    /// Reads more from here on, if a read of `count` bytes was as large as it could be, and what came of it was taken
    /// whole. That it is less again is decided where a part is not taken.
    pub fn grow(&mut self, count: usize, smallest: usize, largest: usize) {
        let size = self.read_size(smallest, largest);
        if count == size && size < largest && self.outbound.is_empty() {
            self.growth += 1;
        }
    }

    /// Asks whether the connection that is being opened is there now. Only then may bytes be sent and received.
    pub fn establish(&mut self) -> io::Result<bool> {
        self.writable = false;
        if !self.socket.established()? {
            return Ok(false);
        }
        self.output = Output::Open;
        self.writable = true;
        Ok(true)
    }

    /// Whether everything that had arrived has been read, and dealt with by its protocol.
    pub fn is_read_drained(&self) -> bool {
        !self.readable && self.input != Input::Paused
    }

    /// Reads nothing for now.
    pub fn pause_reading(&mut self) {
        if self.input == Input::Open {
            self.input = Input::Paused;
        }
    }

    /// Reads again. The socket is asked anew whatever was known of it, so that a stop that waited for this sees its end.
    pub fn resume_reading(&mut self) {
        if self.input == Input::Paused {
            self.input = Input::Open;
            self.readable = true;
        }
    }

    /// Reads once.
    pub fn receive(&mut self, into: &mut [u8], now: Millis) -> io::Result<Received> {
        match uninterrupted(|| self.socket.read(into)) {
            Ok(0) => {
                let closed = self.input == Input::Discarded;
                self.input = if closed { Input::EndedAfterClose } else { Input::Ended };
                self.readable = false;
                Ok(Received::End)
            }
            Ok(count) => {
                let drained =
                    count < into.len() && self.socket.short_read_is_conclusive() && !self.short_read_is_inconclusive;
                self.readable = !drained;
                if self.input == Input::Open {
                    self.moved_at = now;
                }
                Ok(Received::Bytes { count, drained })
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                self.short_read_is_inconclusive = false;
                Ok(Received::WouldBlock)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends `bytes`: what the socket does not take now waits for WRITABLE. Returns how many bytes it took.
    pub fn send(&mut self, bytes: &[u8], now: Millis) -> io::Result<usize> {
        debug_assert!(matches!(self.output, Output::Open), "nothing is sent after close()");
        if !self.outbound.is_empty() {
            self.outbound.push(bytes)?; // behind those that wait: the order is the stream
            return Ok(0);
        }
        match outbound::write(&mut self.socket, bytes)? {
            Sent::All => {
                self.moved_at = now;
                Ok(bytes.len())
            }
            Sent::Part(taken) => {
                self.outbound.push(&bytes[taken..])?;
                self.writable = false;
                self.growth = 0;
                if taken > 0 {
                    self.moved_at = now;
                }
                Ok(taken)
            }
        }
    }

    /// Sends what waits, as far as the socket takes it, and returns how many bytes that was.
    pub fn flush(&mut self, now: Millis) -> io::Result<usize> {
        if !self.may_flush() {
            return Ok(0);
        }
        let taken = self.outbound.drain_into(&mut self.socket)?;
        self.writable = self.outbound.is_empty();
        if taken > 0 && !self.is_closed() {
            self.moved_at = now;
        }
        Ok(taken)
    }

    /// Nothing more will be sent than what waits; what comes in is still received.
    pub fn shutdown_write(&mut self) {
        if matches!(self.output, Output::Connecting | Output::Open) {
            self.output = Output::Finishing;
        }
    }

    /// Nothing more will be sent than what waits, and what comes in is discarded. If the peer has ended its side already,
    /// it may take what waits in its own time; otherwise it has a deadline.
    pub fn close(&mut self, now: Millis) {
        self.shutdown_write();
        if matches!(self.input, Input::Open | Input::Paused) {
            self.input = Input::Discarded;
            self.moved_at = now;
        }
    }

    /// Whether more may be sent.
    pub fn is_open(&self) -> bool {
        self.output == Output::Open
    }

    /// Whether it has begun to close: nothing more will be sent than what waits.
    pub fn is_closing(&self) -> bool {
        matches!(self.output, Output::Finishing | Output::Shut)
    }

    /// Whether [`close`](Connection::close) was called before the peer had ended its side, so what it may still take has a
    /// deadline.
    fn is_closed(&self) -> bool {
        matches!(self.input, Input::Discarded | Input::EndedAfterClose)
    }

    /// Whether the peer has been told that nothing more is sent.
    pub fn is_shut(&self) -> bool {
        self.output == Output::Shut
    }

    fn is_ended(&self) -> bool {
        matches!(self.input, Input::Ended | Input::EndedAfterClose)
    }

    /// When a connection that has been closed is dropped, whatever the peer does until then.
    pub fn closing_due(&self) -> Option<Millis> {
        let timeout = if self.output == Output::Shut { LINGER_TIMEOUT } else { CLOSE_TIMEOUT };
        self.is_closed().then(|| self.moved_at + timeout.as_millis() as Millis)
    }

    /// Whether all that is left is that the peer takes what waits: both sides have ended.
    pub fn only_flushes(&self) -> bool {
        self.output == Output::Finishing && self.is_ended()
    }

    /// Whether it only waits for the peer's end: everything was sent, and nothing is left to be read.
    pub fn is_lingering(&self) -> bool {
        self.output == Output::Shut && self.input == Input::Discarded && !self.readable
    }

    /// Whether dropping the socket now would lose bytes that the peer is to have.
    pub fn would_lose_bytes(&self) -> bool {
        !self.is_connecting() && (self.output != Output::Shut || !self.outbound.is_empty())
    }

    /// Makes the end known once everything that waited has left. Returns whether the connection is over, so that it may
    /// be dropped.
    ///
    /// A socket that is closed with unread bytes in it answers with a reset, and the peer's kernel may then throw away
    /// what it has received but not yet delivered (RFC 1122, 4.2.2.13). So our side is shut first, and the rest of the
    /// peer's bytes are read and discarded until its end is seen: the lingering close that nginx does too.
    pub fn settle(&mut self, now: Millis) -> io::Result<bool> {
        if self.output == Output::Finishing && self.outbound.is_empty() {
            if !self.is_ended() {
                self.socket.shutdown_write()?;
            }
            self.output = Output::Shut;
            if self.is_closed() {
                self.moved_at = now;
            }
        }
        Ok(self.output == Output::Shut && self.is_ended())
    }
}
