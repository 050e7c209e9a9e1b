//! An error that persists is a pause, and is logged once.
//!
//! A call may fail for want of something that the whole machine shares (`EMFILE`, `ENOMEM`), by a rule (`EACCES` of a
//! security module), or with an error that was not foreseen. Making it again at once would spin, and so would waiting for
//! readiness that stays. So the caller pauses, for a time that doubles while the error lasts, and says so once.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use log::{info, warn};

/// How long the first pause of an episode is, and the longest.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// Episodes that begin sooner after the last report are not reported again: a server that is full and whose clients come
/// and go would fill the log.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Interrupted calls in a row that are made again.
const MAX_INTERRUPTS: u32 = 100;

/// Failures in a row that are taken for bad luck with single peers, before they become a pause.
const MAX_FAILURES: u8 = 16;

/// Makes a call again that a signal has interrupted. Not for ever, for a filter of system calls, or a debugger, may have it
/// always say so: then that is an error like any other.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..MAX_INTERRUPTS {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    call()
}

/// The pauses of one caller.
#[derive(Debug)]
pub(super) struct Pause {
    until: Option<Instant>,
    next: Duration,
    failures: u8,
    /// It has paused, and [`end_episode`](Pause::end_episode) was not called since.
    episode: bool,
    /// The episode was logged, so its end is, too.
    told: bool,
    reported: Option<Instant>,
}

impl Default for Pause {
    fn default() -> Self {
        Pause { until: None, next: PAUSE.0, failures: 0, episode: false, told: false, reported: None }
    }
}

impl Pause {
    /// Until when to pause; `None`: not at all.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause, if its time has passed or `early`. Returns whether there is none now.
    pub fn is_over(&mut self, now: Instant, early: bool) -> bool {
        if self.until.is_some_and(|until| early || now >= until) {
            self.until = None;
        }
        self.until.is_none()
    }

    /// Whether it has paused, and the call has not succeeded for good since.
    pub fn is_episode(&self) -> bool {
        self.episode
    }

    /// Notes a failure that is a peer's, and not ours. Returns whether there were too many in a row, so that it is a pause
    /// all the same.
    pub fn is_persistent(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures >= MAX_FAILURES
    }

    /// Notes that the call succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.next = PAUSE.0;
    }

    /// Pauses for a while.
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + self.next);
        self.next = (self.next * 2).min(PAUSE.1);
    }

    /// An episode of pausing begins, or goes on: `tell` gives the line to log, if one is due. Returns whether it is a new one.
    pub fn begin_episode(&mut self, now: Instant, tell: impl FnOnce() -> String) -> bool {
        if std::mem::replace(&mut self.episode, true) {
            return false;
        }
        if self.reported.is_none_or(|then| now.saturating_duration_since(then) >= REPORT_EVERY) {
            self.reported = Some(now);
            self.told = true;
            warn!("{}", tell());
        }
        true
    }

    /// The episode is over; `tell` gives the line to log, if its beginning was logged.
    pub fn end_episode(&mut self, tell: impl FnOnce() -> String) {
        if std::mem::take(&mut self.episode) && std::mem::take(&mut self.told) {
            info!("{}", tell());
        }
    }
}
