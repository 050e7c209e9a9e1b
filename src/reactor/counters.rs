//! What is counted, each counter declared once.

use super::close_reason::CloseReason;

/// One counter, as everything that shows counters reads it: the log, metrics, the live page.
#[derive(Debug)]
pub struct Counter<T: 'static> {
    /// Its name, in snake case.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// What the log calls it, behind a number.
    pub label: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// Its value.
    pub get: fn(&T) -> u64,
}

impl<T> Counter<T> {
    /// Whether it counts bytes.
    pub fn is_bytes(&self) -> bool {
        self.name.ends_with("_bytes")
    }
}

/// How a counter behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Total,
    /// It goes up and down.
    Gauge,
}

/// Declares a struct of counters and its table. Fields that are no plain number follow after `;` and are not in it.
#[macro_export]
#[doc(hidden)]
macro_rules! counters {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $help:literal])+ $field:ident: $kind:ident = $label:literal,)+
            $(; $($(#[$other_meta:meta])* $other:ident: $type:ty,)*)?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[doc = $help])+ pub $field: u64,)+
            $($($(#[$other_meta])* pub $other: $type,)*)?
        }

        impl $name {
            /// All plain counters.
            pub const TABLE: &[$crate::reactor::Counter<Self>] = &[$($crate::reactor::Counter {
                name: stringify!($field),
                help: concat!($($help),+).trim_ascii_start(),
                label: $label,
                kind: $crate::reactor::Kind::$kind,
                get: |counters| counters.$field,
            }),+];
        }
    };
}

counters! {
    /// What the reactor counts.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Counters {
        /// Connections opened
        opened: Total = "connections",
        /// The most connections at once
        peak: Gauge = "at the peak",
        /// Bytes received, discarded ones excepted
        received_bytes: Total = "in",
        /// Bytes that sockets took
        sent_bytes: Total = "out",
        /// Bytes that wait until their sockets are WRITABLE
        waiting_bytes: Gauge = "waiting",
        /// Sends of which the socket took only a part
        partial_sends: Total = "partial sends",
        /// Reads that found nothing
        would_blocks: Total = "would-blocks",
        /// Turns of the loop
        turns: Total = "turns",
        /// Readiness events of connections
        events: Total = "events",
        /// Times that accepting paused for want of room or descriptors
        accept_pauses: Total = "accept pauses",
        ;
        /// Connections closed, by reason: see [`CloseReason::ALL`].
        closed: [u64; CloseReason::ALL.len()],
        /// Turns by the number of their events: see [`TURN_SIZES`].
        turn_sizes: [u64; TURN_SIZES.len()],
        /// Closed connections by how long they were open: see [`LIFETIMES`].
        lifetimes: [u64; LIFETIMES.len()],
        /// How long they were open, all together, in hundredths of a second.
        lifetime_hundredths: u64,
    }
}

/// What came of one listener, though it may have been closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListenerCounters {
    /// Connections accepted from it.
    pub accepted: u64,
    /// Connections that the protocol did not accept.
    pub refused: u64,
    /// Of those accepted, the ones that are open.
    pub open: u64,
}

/// The classes of [`Counters::turn_sizes`]: up to so many events, and more than those before. `None`: any number.
pub const TURN_SIZES: [Option<u64>; 8] = [Some(0), Some(1), Some(4), Some(16), Some(64), Some(256), Some(1024), None];

/// The classes of [`Counters::lifetimes`]: up to so many seconds, and longer than those before. `None`: however long.
pub const LIFETIMES: [Option<f64>; 10] = [
    Some(0.1),
    Some(1.0),
    Some(10.0),
    Some(60.0),
    Some(600.0),
    Some(3600.0),
    Some(21_600.0),
    Some(86_400.0),
    Some(604_800.0),
    None,
];

impl Counters {
    /// Connections closed, for whatever reason.
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Connections closed for the reason with this name.
    ///
    /// # Panics
    ///
    /// If there is no such reason.
    pub fn closed_as(&self, name: &str) -> u64 {
        let index = CloseReason::ALL.iter().position(|(known, _)| *known == name);
        self.closed[index.expect("a reason of CloseReason::ALL")]
    }

    /// Connections that are open.
    pub fn live(&self) -> u64 {
        self.opened - self.closed_total()
    }

    /// Counts the end of a connection that was open for so many hundredths of a second.
    pub(super) fn close(&mut self, reason: usize, hundredths: u64) {
        self.closed[reason] += 1;
        self.lifetime_hundredths += hundredths;
        let seconds = hundredths as f64 / 100.0;
        let class = LIFETIMES.iter().take_while(|bound| bound.is_some_and(|bound| bound < seconds)).count();
        self.lifetimes[class] += 1;
    }

    /// Counts a turn by the number of its events.
    pub(super) fn turn(&mut self, events: u64) {
        self.turns += 1;
        let class = TURN_SIZES.iter().take_while(|bound| bound.is_some_and(|bound| bound < events)).count();
        self.turn_sizes[class] += 1;
    }
}
