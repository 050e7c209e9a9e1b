//! What the log tells of a connection when it is closed.

use std::fmt;
use std::time::Instant;

use crate::reactor::CloseReason;
use crate::reactor::socket::Origin;
use crate::values::show_bytes;

/// What is remembered for that, if the log tells of connections.
pub(super) struct Logged {
    /// Who it is; behind a proxy, for whom that speaks.
    pub peer: Origin,
    opened: Instant,
    /// Bytes that came, a PROXY header among them.
    pub received: u64,
    /// Bytes that were to go to the peer, and those of them that its socket has not taken.
    pub sent: u64,
    pub unsent: u64,
}

impl Logged {
    pub fn new(peer: Origin, opened: Instant) -> Self {
        Logged { peer, opened, received: 0, sent: 0, unsent: 0 }
    }

    /// The line, without the connection's name.
    pub fn farewell(&self, reason: &CloseReason) -> impl fmt::Display {
        let Logged { peer, opened, received, sent, unsent } = *self;
        let [received, taken, left] = [received, sent - unsent.min(sent), unsent].map(show_bytes);
        let left = if unsent > 0 { format!(", {left} unsent") } else { String::new() };
        let after = opened.elapsed().as_secs_f64();
        format!("closed: {reason}; {peer}, {after:.3} s, {received} received, {taken} sent{left}")
    }
}
