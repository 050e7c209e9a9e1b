//! How a reactor behaves.

use std::fmt;
use std::time::Duration;

/// How a reactor behaves. The defaults suit a server of streams.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes read at most at once, at first.
    pub read_size: usize,
    /// Up to this many for a peer that fills its reads and takes whole what it is sent; at least `read_size`. This is
    /// the most that one connection can have waiting to be sent, if its protocol answers with no more than it received;
    /// one that has never been so fast has `read_size` at most.
    pub max_read_size: usize,
    /// Bytes read from one connection in a turn before the others get theirs.
    pub read_budget: usize,
    /// Connections at once. Further ones wait in the backlog until one closes.
    pub max_connections: usize,
    /// Close connections on which nothing moved for this long.
    pub idle_timeout: Option<Duration>,
    /// The token of the first connection. A reactor owns the tokens from here on up to [`Settings::TOKENS`] more, so
    /// that several sources can share a poll.
    pub first_token: usize,
    /// What the log calls this reactor, in front of a connection's number, where several share a poll.
    pub name: &'static str,
}

impl Settings {
    /// What the log calls the connection with this number.
    pub(super) fn label(&self, key: usize) -> Label {
        Label { name: self.name, what: "token", key }
    }

    /// What the log calls the listener with this number.
    pub(super) fn listener_label(&self, key: usize) -> Label {
        Label { name: self.name, what: "listener", key }
    }

    /// How many tokens a reactor owns: its connections have those from `first_token` on, which are their slab keys,
    /// and its listeners those of the upper half.
    pub const TOKENS: usize = 1 << (usize::BITS - 3);
}

impl Default for Settings {
    /// 64 KiB a read and up to 256 KiB, 256 KiB a turn, any number of connections, no idle timeout.
    fn default() -> Self {
        Settings {
            read_size: 64 * 1024,
            max_read_size: 256 * 1024,
            read_budget: 256 * 1024,
            max_connections: usize::MAX,
            idle_timeout: None,
            first_token: 0,
            name: "",
        }
    }
}

/// What the log calls a connection: "token 7", or "http token 7".
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    name: &'static str,
    what: &'static str,
    key: usize,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.name.is_empty() { "" } else { " " };
        write!(f, "{}{separator}{} {}", self.name, self.what, self.key)
    }
}
