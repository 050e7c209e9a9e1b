//! Why a connection is gone: each reason declared once.

use std::fmt;
use std::io;

/// Declares the reasons once: the type, its names and their meanings.
macro_rules! close_reasons {
    ($($(#[doc = $meaning:literal])+ $reason:ident $(($inner:ty))? = $name:literal,)+) => {
        /// Why a connection is gone.
        #[derive(Debug)]
        pub enum CloseReason {
            $($(#[doc = $meaning])+ $reason $(($inner))?,)+
        }

        impl CloseReason {
            /// The name of each reason, as in metrics, and its meaning. [`Counters::closed`](super::Counters::closed)
            /// counts in this order.
            pub const ALL: [(&'static str, &'static str); [$($name),+].len()] = [$(($name, concat!($($meaning),+))),+];

            /// The position of this reason in [`CloseReason::ALL`].
            pub fn index(&self) -> usize {
                #[allow(dead_code, reason = "only the discriminants are used")]
                enum Index { $($reason),+ }
                match self {
                    $(close_reasons!(@pattern $reason $($inner)?) => Index::$reason as usize,)+
                }
            }
        }
    };
    (@pattern $reason:ident) => { CloseReason::$reason };
    (@pattern $reason:ident $inner:ty) => { CloseReason::$reason(_) };
}

close_reasons! {
    /// Everything was sent, and both sides were closed (or the peer did not close its side in time).
    Finished = "finished",
    /// A call on the socket failed: the peer reset the connection, vanished or never answered, or memory ran out.
    Failed(io::Error) = "failed",
    /// Nothing moved for the idle timeout.
    Idle = "idle",
    /// Bytes waited, and the peer did not take them in time.
    Stalled = "stalled",
    /// Its protocol or its owner gave it up.
    Aborted = "aborted",
}

impl CloseReason {
    /// The name of this reason.
    pub fn name(&self) -> &'static str {
        CloseReason::ALL[self.index()].0
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Failed(error) => error.fmt(f),
            reason => f.write_str(reason.name()),
        }
    }
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        CloseReason::Failed(error)
    }
}
