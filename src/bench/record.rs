//! What is counted and timed while the load runs, besides the [ledger](super::ledger)'s account of messages.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use log::debug;

use super::clock::Nanos;
use super::latency::{histogram, record};
use super::ledger::{BackendNumber, Ledger, Outcome};
use super::payload::Mismatch;
use super::summary::{ErrorCount, ErrorKind};

/// Mismatches that are kept with all their details.
const MAX_MISMATCHES: usize = 10;

/// What has been counted and timed.
pub(super) struct Record {
    ledger: Option<Ledger>,
    /// Connect times, and the times that closing took.
    pub connect: Histogram<u64>,
    pub closing: Histogram<u64>,
    /// Connections that were closed here and not by the server, until they were given up.
    pub never_closed: u64,
    /// Connections that were opened in the window in place of others.
    pub reopened: u64,
    pub errors: BTreeMap<ErrorKind, ErrorCount>,
    /// The addresses that slots dial, in turn, for errors to name; empty if their reader knows.
    pub addresses: Vec<String>,
    pub mismatches: Vec<Mismatch>,
}

impl Record {
    pub fn new() -> Self {
        Record {
            ledger: None,
            connect: histogram(),
            closing: histogram(),
            never_closed: 0,
            reopened: 0,
            errors: BTreeMap::new(),
            addresses: Vec::new(),
            mismatches: Vec::new(),
        }
    }

    /// Begins to measure.
    pub fn open(&mut self, now: Nanos, end: Option<Nanos>, open_loop: bool, timeout: Nanos) {
        self.reopened = 0;
        self.ledger = Some(Ledger::open(now, end, open_loop, timeout, self.error_count()));
    }

    /// The account of what is being measured.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Ends the measured time, if it has not ended before; messages that were due in it still get their outcomes.
    pub fn close(&mut self, now: Nanos) {
        if let Some(ledger) = &mut self.ledger {
            ledger.close(now);
        }
    }

    /// Ends the intervals that are over.
    pub fn advance(&mut self, now: Nanos, connections: u64) {
        let errors = self.error_count();
        if let Some(ledger) = &mut self.ledger {
            ledger.advance(now, connections, errors);
        }
    }

    /// Makes sure that every message has its outcome.
    pub fn settle(&mut self) {
        let outstanding = self.ledger.as_ref().map_or(0, Ledger::outstanding);
        debug_assert_eq!(outstanding, 0, "messages without an outcome");
    }

    /// Hands out the account, and the errors.
    pub fn take(&mut self, connections: u64) -> Option<(Ledger, BTreeMap<ErrorKind, ErrorCount>)> {
        let errors = self.error_count();
        let mut ledger = self.ledger.take()?;
        ledger.finish(connections, errors);
        Some((ledger, std::mem::take(&mut self.errors)))
    }

    pub fn connected(&mut self, took: Nanos, again: bool) {
        record(&mut self.connect, took, 1);
        self.reopened += u64::from(again);
    }

    /// Notes that a connection that was closed here is gone; with whether the server closed its side, too.
    pub fn closed(&mut self, took: Nanos, by_server: bool) {
        record(&mut self.closing, took, 1);
        self.never_closed += u64::from(!by_server);
    }

    /// Notes messages of the schedule that are due in the window.
    pub fn due(&mut self, count: u64) {
        if let Some(ledger) = &mut self.ledger {
            ledger.due(count);
        }
    }

    /// Notes a message that is due at `now`, in a closed loop.
    pub fn due_at(&mut self, now: Nanos) {
        if let Some(ledger) = self.ledger.as_mut().filter(|ledger| ledger.covers(now)) {
            ledger.due(1);
        }
    }

    /// See [`Ledger::left`].
    pub fn left(&mut self, due: Nanos, now: Nanos) {
        if let Some(ledger) = &mut self.ledger {
            ledger.left(due, now);
        }
    }

    /// See [`Ledger::answered`].
    pub fn answered(&mut self, count: u64, bytes: u64, due: Nanos, sent: Nanos, now: Nanos, backend: BackendNumber) {
        if let Some(ledger) = &mut self.ledger {
            ledger.answered(count, bytes, due, sent, now, backend);
        }
    }

    /// The shortest time that is not told apart from `nanoseconds`.
    pub fn resolution(&self, nanoseconds: Nanos) -> Nanos {
        self.connect.lowest_equivalent(nanoseconds)
    }

    /// See [`Ledger::lost`].
    pub fn lost(
        &mut self,
        count: u64,
        due: Nanos,
        sent: Option<Nanos>,
        now: Nanos,
        outcome: Outcome,
        backend: BackendNumber,
    ) -> u64 {
        self.ledger.as_mut().map_or(0, |ledger| ledger.lost(count, due, sent, now, outcome, backend))
    }

    /// Notes a datagram that came after one that was sent later.
    pub fn reordered(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.reordered += 1;
        }
    }

    /// Notes a datagram that came again, or after it was given up.
    pub fn duplicate(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.duplicates += 1;
        }
    }

    pub fn error(&mut self, kind: ErrorKind, slot: usize, text: impl FnOnce() -> String) {
        self.errors(kind, slot, 1, text);
    }

    /// Notes that something went wrong so many times at a slot. The first time is told, with the address.
    pub fn errors(&mut self, kind: ErrorKind, slot: usize, count: u64, text: impl FnOnce() -> String) {
        let addresses = &self.addresses;
        let first = || {
            let first = match addresses.get(slot % addresses.len().max(1)) {
                Some(address) => format!("{address}: {}", text()),
                None => text(),
            };
            debug!("the first {}: {first}", kind.counted(1).trim_start_matches("1 "));
            ErrorCount { kind, count: 0, first }
        };
        self.errors.entry(kind).or_insert_with(first).count += count;
    }

    pub fn mismatch(&mut self, mismatch: Mismatch) {
        if self.mismatches.len() < MAX_MISMATCHES {
            self.mismatches.push(mismatch);
        }
    }

    pub fn error_count(&self) -> u64 {
        self.errors.values().map(|error| error.count).sum()
    }
}
