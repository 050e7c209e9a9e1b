//! What may live on a poll, and the law that keeps it from sleeping while there is work.

use std::time::{Duration, Instant};

use mio::Token;

/// What a poll reports of one token. Only a hint: an event may be spurious, or meant for a connection that has gone and
/// whose token is another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Whose it is.
    pub token: Token,
    /// There may be something to read.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The peer has closed its side, or the connection failed.
    pub read_closed: bool,
    /// Urgent data has come (`MSG_OOB`, tcp(7)): `recv` stops in front of it, whatever follows.
    pub urgent: bool,
}

/// A part of a program that lives on a poll: it is told what became ready, makes its steps, and says how long it can
/// sleep.
///
/// A loop over several of them is four lines: wait for as long as the shortest [`sleep`](Source::sleep) of all, route
/// each readiness to the source that owns its token, and give every source its [`turn`](Source::turn).
///
/// # The law
///
/// *Sleep is a function of state.* `sleep` looks at the state as it is after the turn, and says zero if any step could
/// be made. It never relies on the order in which steps were made, or on an event that will come: what freed a slot, a
/// window or a descriptor may have been any source, at any point of the turn, and no event may follow.
pub trait Source {
    /// Notes what the poll reported of one of its tokens. Makes no step.
    fn note(&mut self, readiness: Readiness);

    /// Makes the steps that can be made, each within its budget. `now` is when the poll returned.
    fn turn(&mut self, now: Instant);

    /// Notes what became ready, and makes a turn.
    fn turn_with(&mut self, now: Instant, events: impl IntoIterator<Item = Readiness>)
    where
        Self: Sized,
    {
        events.into_iter().for_each(|readiness| self.note(readiness));
        self.turn(now);
    }

    /// How long the poll may sleep before the next turn, as far as this source goes: zero if a step can be made, `None`
    /// if only readiness can bring one.
    fn sleep(&self, now: Instant) -> Option<Duration>;
}

/// The shortest of several sleeps; `None` is the longest.
pub fn shortest(sleeps: impl IntoIterator<Item = Option<Duration>>) -> Option<Duration> {
    sleeps.into_iter().flatten().min()
}
