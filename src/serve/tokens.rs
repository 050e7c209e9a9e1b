//! Who is who on the one poll.
//!
//! The echo's connections have the tokens from 0 on, which are their slab keys. Those of whoever looks inside come far
//! above, and above them whatever is no connection: listeners, datagram sockets, and the signals at the very end.

use mio::Token;

/// The first token of the connections over which somebody looks inside.
pub(super) const ADMIN: usize = 1 << (usize::BITS - 2);

const SOURCES: usize = 1 << (usize::BITS - 1);

/// The token of a socket that is no connection, by its number.
pub(super) fn source(number: usize) -> Token {
    Token(SOURCES + number)
}

/// Whether a token is that of an echo's connection.
pub(super) fn is_echo(token: Token) -> bool {
    token.0 < ADMIN
}

/// Whether a token is that of a connection over which somebody looks inside.
pub(super) fn is_admin(token: Token) -> bool {
    (ADMIN..SOURCES).contains(&token.0)
}
