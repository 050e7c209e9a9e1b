//! The slots of the load: each is the place of one connection, and outlives it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use mio::Token;

use crate::bench::clock::Nanos;
use crate::bench::ledger::{BackendNumber, UNKNOWN};

/// How a slot's connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Stage {
    /// There is none.
    Closed,
    /// It is being opened since then.
    Connecting { since: Nanos },
    /// It is there.
    Open,
    /// It is being closed, in its time.
    Closing,
    /// It is being closed because something went wrong.
    Failed,
}

/// A message that has been sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    /// The position in the stream at which it ends, and so does its echo; of a datagram, its number.
    pub end: u64,
    pub due: Nanos,
    pub sent: Nanos,
}

/// When a datagram was sent that has been answered before those that were sent before it.
pub(super) const ANSWERED: Nanos = Nanos::MAX;

/// What stands for "since when it has been free" in a slot that is not free.
const NOT_FREE: Nanos = Nanos::MAX;

impl Flight {
    pub fn is_like(&self, other: &Flight) -> bool {
        (self.due, self.sent) == (other.due, other.sent)
    }
}

/// One of the connections that are kept up.
pub(in crate::bench) struct Slot {
    pub stage: Stage,
    pub token: Token,
    /// Which connection it is, counted over all that were ever opened: this tells the streams apart.
    pub(super) serial: u64,
    /// Positions in the stream: what was received, up to where messages are answered, what was handed to the socket, and
    /// what is to be sent. Of a socket for datagrams, `received` is the highest number that came back.
    pub(super) received: u64,
    pub(super) answered: u64,
    pub(super) sent: u64,
    pub(super) planned: u64,
    /// Messages sent on this connection.
    pub(super) begun: u64,
    pub(super) flights: VecDeque<Flight>,
    /// Those of them that are answered already, which happens to datagrams alone.
    pub(super) answered_early: usize,
    /// The slot's next message of the schedule, counted among its own.
    pub(super) next: u64,
    /// Since when it could have sent what is due at once.
    free_since: Nanos,
    /// It has been open before.
    pub(super) seasoned: bool,
    /// When it was opened; and whether it has shown since that somebody is there.
    pub(super) opened: Nanos,
    pub(super) proven: bool,
    /// Which backend its connection leads to.
    pub(super) backend: BackendNumber,
    /// It has an entry in [`Timeouts`].
    armed: bool,
}

impl Slot {
    pub fn new() -> Self {
        Slot {
            stage: Stage::Closed,
            token: Token(0),
            serial: 0,
            received: 0,
            answered: 0,
            sent: 0,
            planned: 0,
            begun: 0,
            flights: VecDeque::new(),
            answered_early: 0,
            next: 0,
            free_since: NOT_FREE,
            seasoned: false,
            opened: 0,
            proven: false,
            backend: UNKNOWN,
            armed: false,
        }
    }

    /// Gives it the connection with this number. Its share of the schedule and its timer stay.
    pub(super) fn renew(&mut self, token: Token, serial: u64) {
        let flights = std::mem::take(&mut self.flights);
        let Slot { next, seasoned, armed, .. } = *self;
        *self = Slot { token, serial, flights, next, seasoned, armed, ..Slot::new() };
    }

    /// Bytes that are to be sent and were not handed to the socket yet.
    pub(super) fn planned_ahead(&self) -> u64 {
        self.planned - self.sent
    }

    /// Messages in flight.
    pub(super) fn in_flight(&self) -> u64 {
        (self.flights.len() - self.answered_early) as u64
    }

    /// Notes whether everything that is due has been sent, at `now`.
    pub(super) fn set_free(&mut self, free: bool, now: Nanos) {
        match (free, self.free_since) {
            (true, NOT_FREE) => self.free_since = now,
            (false, _) => self.free_since = NOT_FREE,
            _ => {}
        }
    }

    /// Whether nothing but the generator itself was in the way of a message that was due then.
    pub(super) fn was_free(&self, due: Nanos) -> bool {
        self.stage == Stage::Open && self.free_since <= due
    }

    /// Since when nothing has been in the way of a message.
    pub(super) fn free_since(&self) -> Option<Nanos> {
        Some(self.free_since).filter(|since| *since != NOT_FREE)
    }

    /// Whether nothing is in the way of a message now.
    pub(super) fn is_free(&self) -> bool {
        self.stage == Stage::Open && self.free_since != NOT_FREE
    }

    /// When what it waits for has taken too long.
    fn deadline(&self, timeout: Nanos) -> Option<Nanos> {
        match self.stage {
            Stage::Connecting { since } => Some(since + timeout),
            Stage::Open => self.flights.front().map(|oldest| oldest.sent.saturating_add(timeout)),
            _ => None,
        }
    }
}

/// When connects and replies have taken too long. Each slot has one entry at most, which is looked at when its time has
/// come, and moved on if the slot has been answered meanwhile: while replies come it costs nothing.
pub(super) struct Timeouts {
    timeout: Nanos,
    entries: BinaryHeap<Reverse<(Nanos, u32)>>,
}

impl Timeouts {
    pub fn new(timeout: Nanos) -> Self {
        Timeouts { timeout, entries: BinaryHeap::new() }
    }

    pub fn timeout(&self) -> Nanos {
        self.timeout
    }

    /// Notes that a slot waits for something since `since`.
    pub fn arm(&mut self, slot: &mut Slot, index: u32, since: Nanos) {
        if !slot.armed {
            slot.armed = true;
            self.entries.push(Reverse((since + self.timeout, index)));
        }
    }

    /// When there may be something to [`take`](Timeouts::take).
    pub fn next(&self) -> Option<Nanos> {
        self.entries.peek().map(|Reverse((at, _))| at.saturating_add(1))
    }

    /// Takes a slot that has waited for too long.
    pub fn take(&mut self, slots: &mut [Slot], now: Nanos) -> Option<u32> {
        while let Some(&Reverse((at, index))) = self.entries.peek().filter(|Reverse((at, _))| *at < now) {
            self.entries.pop();
            let slot = &mut slots[index as usize];
            match slot.deadline(self.timeout) {
                Some(deadline) if deadline < now => {
                    slot.armed = false;
                    return Some(index);
                }
                Some(deadline) => self.entries.push(Reverse((deadline.max(at), index))),
                None => slot.armed = false,
            }
        }
        None
    }
}
