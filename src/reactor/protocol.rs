//! What a service does with its connections.

use std::fmt;
use std::time::{Duration, Instant};

use mio::Token;

use super::close_reason::CloseReason;
use super::socket::Origin;
use super::stream::Stream;
use super::transport::Transport;

/// What a service does with its connections. One value serves all of them; what must be remembered about one is its
/// `State`.
///
/// The calls for one connection come in this order: `accept` (if a listener accepted it), `opened`, then any number of
/// `received`, `read_drained`, `flushed` and `expired`, `eof` at most once, `unsent` at most once, and `closed`, which is
/// always the last. Of a connection that could not be opened there is `closed` alone.
pub trait Protocol<S: Stream>: Sized {
    /// What is remembered about each connection. Idle connections pay for its size; keep it small, or boxed.
    type State;

    /// Whether a connection is read while bytes for its peer wait. A server says no: a peer that sends and never reads
    /// is then not read either, and its memory stays bounded by one read. A client of such a server must say yes, or
    /// the two would wait for each other.
    const FULL_DUPLEX: bool = false;

    /// How late [`expired`](Protocol::expired) may be called, on top of what the poll is late: how finely deadlines are
    /// told apart. The shorter it is, the more often one that is far ahead is looked at: each 1,022 ticks.
    const TICK: Duration = Duration::from_millis(1);

    /// A peer has connected to a listener. Returns what is to be remembered about it. By default everybody is refused: a
    /// protocol that has a listener must say whom it lets in.
    ///
    /// # Errors
    ///
    /// Why it is refused: its socket is closed then, and nothing else is called for it.
    fn accept(&mut self, _origin: Origin, _now: Instant) -> Result<Self::State, Refusal> {
        Err(Refusal("this protocol does not accept connections"))
    }

    /// The connection is open, and can be written to.
    fn opened(&mut self, _transport: &mut Transport<'_, S>, _state: &mut Self::State) {}

    /// Bytes were received: the next ones of the stream, cut anywhere, so that what has no end yet is kept in the state,
    /// up to a limit. Not called any more after [`close`](Transport::close).
    fn received(&mut self, transport: &mut Transport<'_, S>, state: &mut Self::State, bytes: &[u8]);

    /// Everything that had arrived has been received.
    fn read_drained(&mut self, _transport: &mut Transport<'_, S>, _state: &mut Self::State) {}

    /// Everything that waited to be sent has been taken by the socket; or the protocol had asked to be
    /// [called again](Transport::call_again).
    fn flushed(&mut self, _transport: &mut Transport<'_, S>, _state: &mut Self::State) {}

    /// The peer has closed its side; everything it sent has been received, or discarded after
    /// [`close`](Transport::close). By default our side is closed too, once what waits has been sent. A protocol with an `eof`
    /// of its own has to close, now or later; and here it can answer what the peer left unfinished, as a last line without
    /// its newline.
    fn eof(&mut self, transport: &mut Transport<'_, S>, _state: &mut Self::State) {
        transport.close();
    }

    /// A timer of the protocol's own: when [`expired`](Protocol::expired) is to be called, unless it is moved before then.
    /// It is asked after every step of the connection and kept on a [timer wheel](super::timer_wheel), so a
    /// deadline that moves with every message costs nothing. Derive it from a time in the state, such as the last
    /// message's ([`Transport::now`]); `accept` is given the first.
    ///
    /// While bytes wait for the peer it is not read, and `received` is not called however much it sends: where a slow
    /// reader is not to pass for a silent peer, `expired` moves the deadline if [`Transport::waiting`] is not 0.
    ///
    /// A connection that is [closed](Transport::close) has none: the time that its end may take is the reactor's
    /// business. If the peer had ended its side before, it has, and is dropped as stalled when that has passed.
    fn deadline(&self, _state: &Self::State) -> Option<Instant> {
        None
    }

    /// The [`deadline`](Protocol::deadline) has passed. By default the connection is aborted. It can also be closed, after
    /// a last word to the peer, or the deadline be moved; while it stays in the past this is called again each
    /// [tick](Protocol::TICK).
    fn expired(&mut self, transport: &mut Transport<'_, S>, _state: &mut Self::State) {
        transport.abort();
    }

    /// The connection is about to be dropped, and so many of the bytes written to it were never taken by its socket. Called
    /// just before `closed`.
    fn unsent(&mut self, _state: &mut Self::State, _bytes: usize) {}

    /// The connection is gone.
    fn closed(&mut self, _token: Token, _state: Self::State, _reason: &CloseReason) {}
}

/// Why a peer is refused, as the log says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub &'static str);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
