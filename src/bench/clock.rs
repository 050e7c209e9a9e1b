//! The time, as the load generator tells it: nanoseconds since it began.

use std::time::{Duration, Instant};

/// Nanoseconds since the load generator began.
pub(super) type Nanos = u64;

/// The time. It is read where something happens that is timed: before a message is sent, and after bytes were received.
pub(super) struct Clock {
    epoch: Instant,
    source: fn() -> Instant,
    now: Nanos,
}

impl Clock {
    /// A clock that reads `source`: [`Instant::now`], or what a test says.
    pub fn new(source: fn() -> Instant) -> Self {
        Clock { epoch: source(), source, now: 0 }
    }

    /// Reads the time.
    pub fn read(&mut self) -> Nanos {
        self.now = self.at((self.source)());
        self.now
    }

    /// The time as it was last read.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// The same as an instant.
    pub fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now)
    }

    /// An instant in nanoseconds.
    pub fn at(&self, instant: Instant) -> Nanos {
        nanos(instant.saturating_duration_since(self.epoch))
    }
}

/// A duration in nanoseconds.
pub(super) fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX / 4)
}

/// Nanoseconds in seconds.
pub(super) fn seconds(nanoseconds: Nanos) -> f64 {
    nanoseconds as f64 / 1e9
}
