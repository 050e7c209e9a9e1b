//! What is counted and timed while the load runs.
//!
//! The *window* is what is measured, after the warm-up. A message belongs to it if it was due in it; its latency is
//! recorded even if its reply comes after the window's end, for the slowest replies are the ones that come last. The
//! rate is of the replies that came within the window.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::client::Nanos;
use super::latency::{Latency, histogram};
use super::payload::Mismatch;
use super::summary::{ErrorCount, ErrorKind, Interval, Messages};

/// Mismatches that are kept with all their details.
const MISMATCHES: usize = 10;

/// From how much on a message that could have been sent counts as late.
const LATE: Nanos = 1_000_000;

/// What has been counted and timed.
pub(super) struct Record {
    window: Option<Window>,
    pub connect: Histogram<u64>,
    pub reopened: u64,
    pub errors: BTreeMap<ErrorKind, ErrorCount>,
    pub mismatches: Vec<Mismatch>,
}

/// The measured time.
pub(super) struct Window {
    from: Nanos,
    /// When it ended.
    to: Option<Nanos>,
    pub messages: Messages,
    /// Response times up to the last interval.
    pub response: Histogram<u64>,
    /// Service times; `None` in a closed loop.
    pub service: Option<Histogram<u64>>,
    pub late: u64,
    /// Datagrams that came after one that was sent later.
    pub reordered: u64,
    /// Datagrams that came again, or after they were given up.
    pub duplicates: u64,
    pub timeline: Vec<Interval>,
    /// Response times of the interval that runs.
    pub current: Histogram<u64>,
    began: Nanos,
    /// Replies, bytes and errors before the interval that runs.
    before: (u64, u64, u64),
}

impl Record {
    pub fn new() -> Self {
        Record { window: None, connect: histogram(), reopened: 0, errors: BTreeMap::new(), mismatches: Vec::new() }
    }

    /// Begins to measure.
    pub fn open_window(&mut self, now: Nanos, open_loop: bool) {
        self.window = Some(Window {
            from: now,
            to: None,
            messages: Messages::default(),
            response: histogram(),
            service: open_loop.then(histogram),
            late: 0,
            reordered: 0,
            duplicates: 0,
            timeline: Vec::new(),
            current: histogram(),
            began: now,
            before: (0, 0, self.error_count()),
        });
    }

    /// The time that is being measured.
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// Ends the measured time; replies to its messages are still timed.
    pub fn close_window(&mut self, now: Nanos, missed: u64) {
        if let Some(window) = &mut self.window {
            window.to = Some(now);
            window.messages.missed = missed;
        }
    }

    /// Ends the interval that runs and begins the next one.
    pub fn next_interval(&mut self, now: Nanos, connections: u64) {
        let errors = self.error_count();
        if let Some(window) = &mut self.window {
            window.next_interval(now, connections, errors);
        }
    }

    /// Ends the last interval, and hands out what was measured.
    pub fn take_window(&mut self, connections: u64) -> Option<Window> {
        let errors = self.error_count();
        let mut window = self.window.take()?;
        let to = window.to?;
        if to > window.began || !window.current.is_empty() {
            window.next_interval(to, connections, errors);
        }
        Some(window)
    }

    pub fn connected(&mut self, took: Nanos, again: bool) {
        self.connect.saturating_record(took);
        self.reopened += u64::from(again);
    }

    pub fn sent(&mut self, due: Nanos) {
        if let Some(window) = self.window.as_mut().filter(|window| window.covers(due)) {
            window.messages.sent += 1;
        }
    }

    pub fn bytes(&mut self, count: u64) {
        if let Some(window) = self.window.as_mut().filter(|window| window.to.is_none()) {
            window.messages.bytes += count;
        }
    }

    /// Replies that came whole at `now`, to messages that were due and sent at the same times.
    pub fn replies(&mut self, count: u64, due: Nanos, sent: Nanos, now: Nanos) {
        let Some(window) = &mut self.window else { return };
        // A reply counts with its message.
        if window.covers(due) {
            if window.to.is_none() {
                window.messages.replies += count;
            }
            window.current.saturating_record_n(now.saturating_sub(due), count);
            if let Some(service) = &mut window.service {
                service.saturating_record_n(now.saturating_sub(sent), count);
            }
        }
    }

    pub fn unanswered(&mut self, due: Nanos) {
        if let Some(window) = self.window.as_mut().filter(|window| window.covers(due)) {
            window.messages.unanswered += 1;
        }
    }

    /// Notes a datagram that came after one that was sent later.
    pub fn reordered(&mut self) {
        if let Some(window) = &mut self.window {
            window.reordered += 1;
        }
    }

    /// Notes a datagram that came again, or after it was given up.
    pub fn duplicate(&mut self) {
        if let Some(window) = &mut self.window {
            window.duplicates += 1;
        }
    }

    /// Notes that a message that was due is being sent at `now`, with nothing in its way.
    pub fn on_time(&mut self, due: Nanos, now: Nanos) {
        if let Some(window) = self.window.as_mut().filter(|window| now - due > LATE && window.covers(due)) {
            window.late += 1;
        }
    }

    pub fn error(&mut self, kind: ErrorKind, text: impl FnOnce() -> String) {
        self.errors.entry(kind).or_insert_with(|| ErrorCount { kind, count: 0, first: text() }).count += 1;
    }

    pub fn mismatch(&mut self, mismatch: Mismatch) {
        if self.mismatches.len() < MISMATCHES {
            self.mismatches.push(mismatch);
        }
    }

    pub fn error_count(&self) -> u64 {
        self.errors.values().map(|error| error.count).sum()
    }
}

impl Window {
    fn covers(&self, due: Nanos) -> bool {
        due >= self.from && self.to.is_none_or(|to| due < to)
    }

    /// When it began.
    pub fn from(&self) -> Nanos {
        self.from
    }

    /// Its length in seconds, once it has ended.
    pub fn seconds(&self) -> f64 {
        self.to.map_or(0.0, |to| seconds(to - self.from))
    }

    fn next_interval(&mut self, now: Nanos, connections: u64, errors: u64) {
        let Messages { replies, bytes, .. } = self.messages;
        self.timeline.push(Interval {
            at: seconds(self.began - self.from),
            seconds: seconds(now.saturating_sub(self.began)),
            replies: replies - self.before.0,
            bytes: bytes - self.before.1,
            connections,
            errors: errors - self.before.2,
            response: Latency::from(&self.current),
        });
        self.response += &self.current;
        self.current.reset();
        self.began = now;
        self.before = (replies, bytes, errors);
    }
}

fn seconds(nanoseconds: Nanos) -> f64 {
    nanoseconds as f64 / 1e9
}
