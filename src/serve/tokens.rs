//! Which source on the one poll a token belongs to.

use mio::Token;

use crate::reactor::Settings;
use crate::signals;

/// The first token of the admin interface's connections; those of the echo begin at 0.
pub(super) const ADMIN: usize = Settings::TOKENS;

/// The first token of the datagram sockets.
pub(super) const DATAGRAMS: usize = 2 * Settings::TOKENS;

/// A source on the poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The echo over streams, and its listeners.
    Streams,
    /// The admin interface, and its listeners.
    Admin,
    /// The echo over datagrams.
    Datagrams,
    Signals,
}

impl Owner {
    /// Whose token it is.
    pub fn of(token: Token) -> Owner {
        match token.0 / Settings::TOKENS {
            0 => Owner::Streams,
            1 => Owner::Admin,
            _ if token == signals::TOKEN => Owner::Signals,
            _ => Owner::Datagrams,
        }
    }
}
