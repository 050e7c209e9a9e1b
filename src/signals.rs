//! SIGINT and SIGTERM, taken into the event loop: the first asks for an orderly end, a second one for an end at once.
//!
//! It knows what signals ask for, and not how that is done.

use std::time::{Duration, Instant};

use anyhow::Context;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

/// The token under which signals become ready.
pub const TOKEN: Token = Token(usize::MAX - 1);

/// A signal that follows the first so closely is the same request: GNU `timeout` signals its child, and then the
/// process group that the child is in.
const SAME: Duration = Duration::from_millis(10);

/// The signals that ask this process to end.
pub struct StopSignals {
    signals: Signals,
    requested: Option<Instant>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// An orderly end; with the signal's number.
    Stop(i32),
    /// An end at once; with the signal's number.
    Kill(i32),
}

impl StopSignals {
    /// Takes SIGINT and SIGTERM over for the whole process; they become ready under [`TOKEN`].
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left.
    pub fn new(registry: &Registry) -> anyhow::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot take signals")?;
        registry.register(&mut signals, TOKEN, Interest::READABLE).context("cannot take signals")?;
        Ok(StopSignals { signals, requested: None })
    }

    /// What the signals ask for that came since the last time.
    pub fn take(&mut self, now: Instant) -> Option<Request> {
        let requested = &mut self.requested;
        self.signals.pending().filter_map(|signal| judge(requested, signal, now)).last()
    }
}

fn judge(requested: &mut Option<Instant>, signal: i32, now: Instant) -> Option<Request> {
    match *requested {
        None => {
            *requested = Some(now);
            Some(Request::Stop(signal))
        }
        Some(first) if now.saturating_duration_since(first) < SAME => None,
        Some(_) => Some(Request::Kill(signal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_stops_the_second_kills_and_twice_at_once_is_once() {
        let (mut requested, begin) = (None, Instant::now());
        assert_eq!(judge(&mut requested, SIGTERM, begin), Some(Request::Stop(SIGTERM)));
        assert_eq!(judge(&mut requested, SIGINT, begin + Duration::from_millis(1)), None);
        assert_eq!(judge(&mut requested, SIGINT, begin + SAME), Some(Request::Kill(SIGINT)));
        assert_eq!(judge(&mut requested, SIGTERM, begin + SAME), Some(Request::Kill(SIGTERM)));
    }
}
