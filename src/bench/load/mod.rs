//! The load: connections that send messages, check every byte that comes back, and time the replies.
//!
//! Each connection has a *slot*. A slot outlives its connection, for with `--reconnect` it gets another one. In a *closed
//! loop* a slot has so many messages in flight, and sends the next one when a reply has come. In an *open loop* messages
//! are due by a schedule that waits for nobody, and every slot has its share of it, whether or not its connection is able
//! to send: what it owes is sent as soon as it can be, and its response time counts from when it was due. Otherwise a
//! server that stalls would be asked less just when it is slow, and would look good (*coordinated omission*).
//!
//! `streams` and `datagrams` are what differs. Neither opens connections nor knows the poll; what became of each message
//! goes to the [ledger](super::ledger).

mod backends;
mod datagrams;
mod slot;
mod streams;

use std::time::Duration;

use mio::Token;

use super::clock::{Clock, Nanos, nanos};
use super::ledger::{Ledger, Outcome, UNKNOWN};
use super::payload::{Payload, Sizes};
use super::record::Record;
use super::schedule::Schedule;
use super::summary::ErrorKind;
use crate::count::counted;
use backends::Backends;
use datagrams::Port;
pub(super) use datagrams::{MAX_DATAGRAM, NUMBER};
use slot::{Flight, Timeouts};
pub(super) use slot::{Slot, Stage};
pub(super) use streams::{Peer, connect_kind};

/// When messages are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Traffic {
    /// Never.
    Off,
    /// When a reply has come.
    Closed,
    /// When they are due.
    Open(Schedule),
}

/// What the load is made of.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub seed: u64,
    /// The smallest and the largest message in bytes.
    pub sizes: (u64, u64),
    /// Messages in flight per connection, in a closed loop.
    pub depth: u64,
    /// Messages after which a connection is closed and another one opened.
    pub reconnect: Option<u64>,
    /// Connections that carry messages.
    pub busy: usize,
    /// Connections that are idle.
    pub idle: usize,
    /// When a reply or a connect is given up.
    pub timeout: Duration,
    /// Connections that may be being closed while their slots have others already.
    pub max_closing: usize,
    /// Whether to tell backends apart by the line that they send first.
    pub by_greeting: bool,
}

#[cfg(test)]
impl Shape {
    /// One connection that carries messages.
    pub fn single(sizes: (u64, u64), depth: u64) -> Self {
        let (reconnect, timeout) = (None, Duration::from_secs(5));
        Shape { seed: 7, sizes, depth, reconnect, busy: 1, idle: 0, timeout, max_closing: 0, by_greeting: false }
    }
}

/// What is the same for all connections.
pub(super) struct Load {
    payload: Payload,
    sizes: Sizes,
    depth: u64,
    reconnect: Option<u64>,
    max_closing: usize,
    pub clock: Clock,
    /// Those that carry messages, then those that are idle.
    pub slots: Vec<Slot>,
    pub busy: usize,
    /// What each datagram socket is for, by its token.
    ports: Vec<Port>,
    /// Where a datagram is put together.
    datagram: Box<[u8]>,
    timeouts: Timeouts,
    traffic: Traffic,
    /// Messages that may still be sent in a closed loop.
    left: Option<u64>,
    /// Messages of the schedule that are due by now, and how many there will be at most.
    released: u64,
    last: u64,
    /// Messages of the schedule whose slots have been told.
    told: u64,
    serials: u64,
    /// Connections that are being opened.
    pub connecting: usize,
    /// Connections that are there, idle ones included only if there are no others; those that are being closed count.
    alive: usize,
    /// Connections that are being closed and have no slot any more.
    closing: usize,
    /// Messages in flight, over all slots; and those that were ever sent.
    pub in_flight: u64,
    pub begun: u64,
    /// When the last answer came, or a whole timeout had passed without any; and how often that was in a row.
    last_sign: Nanos,
    futile: u32,
    /// When the last answer came.
    pub answered_at: Nanos,
    /// Slots whose connection is gone, for their owner to open again; with whether something went wrong.
    pub gone: Vec<(u32, bool)>,
    /// That a reply takes longer than the timeout is an error: over streams.
    pub late_is_error: bool,
    pub record: Record,
    /// The backends that have greeted, if they are told apart.
    pub backends: Option<Box<Backends>>,
}

impl Load {
    pub fn new(shape: &Shape, clock: Clock) -> Self {
        Load {
            payload: Payload::new(shape.seed),
            sizes: Sizes::new(shape.sizes.0, shape.sizes.1, shape.seed),
            depth: shape.depth,
            reconnect: shape.reconnect,
            max_closing: shape.max_closing,
            clock,
            slots: (0..shape.busy + shape.idle).map(|_| Slot::new()).collect(),
            busy: shape.busy,
            ports: Vec::new(),
            datagram: Box::default(),
            timeouts: Timeouts::new(nanos(shape.timeout)),
            traffic: Traffic::Off,
            left: None,
            released: 0,
            last: 0,
            told: 0,
            serials: 0,
            connecting: 0,
            alive: 0,
            closing: 0,
            in_flight: 0,
            begun: 0,
            last_sign: 0,
            futile: 0,
            answered_at: 0,
            gone: Vec::new(),
            late_is_error: true,
            record: Record::new(),
            backends: shape.by_greeting.then(Box::default),
        }
    }

    /// A slot gets a new connection, which is being opened since `since`.
    pub fn connecting(&mut self, index: u32, token: Token, since: Nanos) {
        let serial = self.serials;
        self.serials += 1;
        self.payload.prepare(serial);
        let slot = &mut self.slots[index as usize];
        slot.renew(token, serial);
        if let Some(backends) = &mut self.backends {
            backends.forget(index);
        }
        self.timeouts.arm(slot, index, since);
        self.set_stage(index as usize, Stage::Connecting { since });
    }

    /// A slot's connection is open.
    fn is_open(&mut self, index: u32, now: Nanos) {
        let slot = &mut self.slots[index as usize];
        slot.opened = now;
        // One that replaces another under load shows first that it is not just accepted and dropped. A greeting shows that.
        slot.proven = !slot.seasoned || slot.backend != UNKNOWN || matches!(self.traffic, Traffic::Off);
        self.set_stage(index as usize, Stage::Open);
        self.slots[index as usize].set_free(true, now);
    }

    /// Changes how a slot's connection is. Returns how it was.
    fn set_stage(&mut self, index: usize, stage: Stage) -> Stage {
        let counts = self.busy == 0 || index < self.busy;
        let slot = &mut self.slots[index];
        let before = std::mem::replace(&mut slot.stage, stage);
        self.connecting -= usize::from(matches!(before, Stage::Connecting { .. }));
        self.connecting += usize::from(matches!(stage, Stage::Connecting { .. }));
        let is_alive = |stage| counts && slot.proven && matches!(stage, Stage::Open | Stage::Closing);
        self.alive += usize::from(is_alive(stage));
        self.alive -= usize::from(is_alive(before));
        before
    }

    /// Whether there is any connection that the run is about. One that was opened again counts once it has been answered,
    /// or has been there for a while: a server that accepts and drops is none.
    pub fn is_alive(&mut self, now: Nanos, a_while: Nanos) -> bool {
        if self.alive == 0 && self.reconnect.is_some() {
            for slot in &mut self.slots {
                if slot.stage == Stage::Open && !slot.proven && now.saturating_sub(slot.opened) >= a_while {
                    slot.proven = true;
                    self.alive += 1;
                }
            }
        }
        self.alive > 0
    }

    /// How many times in a row a reply has been waited for as long as one is, and none has come.
    pub fn futile(&self) -> u32 {
        self.futile
    }

    fn note_futile(&mut self, now: Nanos) {
        if now.saturating_sub(self.last_sign) >= self.timeouts.timeout() {
            self.futile += 1;
            self.last_sign = now;
        }
    }

    /// Begins to send. In a closed loop the slots must be fed once, to get them going.
    pub fn start(&mut self, traffic: Traffic) {
        self.traffic = traffic;
        (self.left, self.released, self.told, self.last) = (None, 0, 0, u64::MAX);
        for slot in &mut self.slots {
            slot.next = 0;
        }
    }

    /// Opens the window: what is due from `now` on, and before `end`, is accounted for; at most so many messages.
    pub fn open_window(&mut self, now: Nanos, end: Option<Nanos>, messages: Option<u64>) {
        if let Traffic::Open(schedule) = self.traffic {
            let first = schedule.count_before(now);
            (self.released, self.told) = (first, first);
            self.last = messages.map_or(u64::MAX, |messages| first.saturating_add(messages));
            // What was due before and has not been sent is not of the window, and must not stand in its way.
            for index in 0..self.busy {
                self.slots[index].next = self.due_of(index);
            }
        }
        self.left = messages;
        self.record.open(now, end, matches!(self.traffic, Traffic::Open(_)), self.timeouts.timeout());
    }

    /// Closes the window at `now`, if it has not ended before: nothing becomes due any more. What is due and waits for its
    /// connection is still sent; what the generator has not got to is never sent.
    pub fn close_window(&mut self, now: Nanos) {
        self.release(now);
        self.record.close(now);
        match self.traffic {
            Traffic::Open(_) => self.last = self.released,
            _ => self.traffic = Traffic::Off,
        }
    }

    /// Gives up what the generator has not got to.
    pub fn drop_backlog(&mut self, now: Nanos) {
        for index in 0..self.busy {
            if self.slots[index].is_free() {
                self.give_up(index, now, |slot, due| slot.was_free(due).then_some(Outcome::GeneratorBehind));
            }
        }
    }

    /// Gives everything that has no outcome yet its own: nothing is waited for any more. If it was waited for long enough,
    /// that is an error of those connections.
    pub fn settle(&mut self, now: Nanos, is_error: bool) {
        for index in 0..self.busy {
            self.give_up(index, now, |slot, due| {
                Some(match slot.stage {
                    Stage::Open if slot.was_free(due) => Outcome::GeneratorBehind,
                    Stage::Open => Outcome::EndReached,
                    _ => Outcome::ConnectionGone,
                })
            });
            // They stay in flight, for they may still be answered while something else is measured.
            let slot = &self.slots[index];
            let mut lost = 0;
            for flight in slot.flights.iter().filter(|flight| flight.sent != slot::ANSWERED) {
                lost += self.record.lost(1, flight.due, Some(flight.sent), now, Outcome::Unanswered, slot.backend);
            }
            if lost > 0 && is_error {
                let lost = counted(lost, "message");
                let text = || format!("connection {}: {lost} not answered until the end", slot.serial);
                self.record.error(ErrorKind::ReplyTimeout, index, text);
            }
        }
        self.record.settle();
        self.traffic = Traffic::Off;
    }

    /// Gives up what a slot owes, the earliest first, as long as `outcome` says what is to be said of it.
    fn give_up(&mut self, index: usize, now: Nanos, outcome: impl Fn(&Slot, Nanos) -> Option<Outcome>) {
        let Traffic::Open(schedule) = self.traffic else { return };
        let owed_until = self.due_of(index);
        while self.slots[index].next < owed_until {
            let slot = &self.slots[index];
            let due = schedule.due(index as u64 + slot.next * self.busy as u64);
            let Some(outcome) = outcome(slot, due) else { return };
            // There may be very many: those whose times the record does not tell apart are given up together.
            let alike = self.record.resolution(now.saturating_sub(due));
            let mut end = now.saturating_sub(alike).saturating_add(1);
            if let Some(changes) = slot.free_since().filter(|since| *since > due) {
                end = end.min(changes);
            }
            let numbers = schedule.count_before(end).min(self.released);
            let count = self.share(index, numbers).saturating_sub(slot.next).max(1);
            self.slots[index].next += count;
            self.record.lost(count, due, None, now, outcome, UNKNOWN);
        }
    }

    /// Whether messages are being sent.
    pub fn is_sending(&self) -> bool {
        !matches!(self.traffic, Traffic::Off)
    }

    /// Whether all messages that there were to send have their outcome, those excepted that no connection will send.
    pub fn is_exhausted(&self) -> bool {
        let all_due = match self.traffic {
            Traffic::Open(_) => self.released == self.last,
            _ => self.left == Some(0),
        };
        all_due && !self.is_awaiting()
    }

    /// Whether any message of the window has no outcome and may still get one.
    pub fn is_awaiting(&self) -> bool {
        let outstanding = self.record.ledger().map_or(0, Ledger::outstanding);
        if outstanding == 0 || self.reconnect.is_some() || !matches!(self.traffic, Traffic::Open(_)) {
            return outstanding > 0;
        }
        let hopeless = (0..self.busy).filter(|&index| self.slots[index].stage == Stage::Closed);
        outstanding > hopeless.map(|index| self.due_of(index).saturating_sub(self.slots[index].next)).sum()
    }

    /// How many messages of the schedule a slot was to send by now.
    fn due_of(&self, index: usize) -> u64 {
        self.share(index, self.released)
    }

    /// How many of the schedule's first messages are a slot's.
    fn share(&self, index: usize, first: u64) -> u64 {
        first.saturating_add(self.busy as u64 - 1).saturating_sub(index as u64) / self.busy as u64
    }

    /// When the next message of the schedule is due; `now` if slots have not been told yet of some that are.
    pub fn next_due(&self, now: Nanos) -> Option<Nanos> {
        match self.traffic {
            _ if self.told < self.released => Some(now),
            Traffic::Open(schedule) if self.released < self.last => Some(schedule.due(self.released).saturating_add(1)),
            _ => None,
        }
    }

    /// Takes in which messages of the schedule are due before `now`.
    pub fn release(&mut self, now: Nanos) {
        let Traffic::Open(schedule) = self.traffic else { return };
        let end = self.record.ledger().map_or(now, |ledger| now.min(ledger.to()));
        let released = schedule.count_before(end).clamp(self.released, self.last);
        self.record.due(released - self.released);
        self.released = released;
        // Each slot is told once, however much it owes.
        self.told = self.told.max(released.saturating_sub(self.busy as u64));
    }

    /// A slot that has messages of the schedule to send and has not been told yet.
    pub fn take_told(&mut self) -> Option<u32> {
        if self.told >= self.released {
            return None;
        }
        let index = self.told % self.busy as u64;
        self.told += 1;
        Some(index as u32)
    }

    /// When there may be something to [`expire`](Load::expire).
    pub fn next_timeout(&self) -> Option<Nanos> {
        self.timeouts.next()
    }

    /// Takes a connection on which a connect or a reply has taken too long, for its owner to close. It has failed by that.
    pub fn expire(&mut self, now: Nanos) -> Option<Token> {
        let timeout = self.timeouts.timeout();
        let index = self.timeouts.take(&mut self.slots, now)? as usize;
        let shown = humantime::format_duration(Duration::from_nanos(timeout));
        let slot = &self.slots[index];
        if matches!(slot.stage, Stage::Connecting { .. }) {
            let greeted = self.backends.as_ref().is_none_or(|backends| !backends.awaits(index as u32));
            let text = match greeted {
                true => format!("no connection within {shown}"),
                false => format!("no greeting within {shown}: --by-greeting needs servers that send a line first"),
            };
            self.fail(index, ErrorKind::ConnectTimeout, text, Outcome::Failed);
        } else {
            let text = format!(
                "connection {}: {} of {} came back within {shown}",
                slot.serial,
                slot.received,
                counted(slot.planned, "byte")
            );
            self.fail(index, ErrorKind::ReplyTimeout, text, Outcome::Unanswered);
            self.note_futile(now);
        }
        Some(self.slots[index].token)
    }

    /// Connections that are being closed in their time.
    pub fn still_closing(&self) -> u64 {
        let in_slots = self.slots.iter().filter(|slot| slot.stage == Stage::Closing).count();
        (self.closing + in_slots) as u64
    }

    /// Connections that carry messages, and are there.
    pub fn open(&self) -> u64 {
        self.slots[..self.busy].iter().filter(|slot| slot.stage == Stage::Open).count() as u64
    }

    /// Idle connections that are there.
    pub fn open_idle(&self) -> u64 {
        self.slots[self.busy..].iter().filter(|slot| slot.stage == Stage::Open).count() as u64
    }

    /// Whether a slot's connection has carried all the messages that it was to carry.
    fn is_spent(&self, index: u32) -> bool {
        self.reconnect.is_some_and(|limit| self.slots[index as usize].begun >= limit)
    }

    /// Whether a slot may begin another message; and when that was due, if it was by a schedule.
    fn may_begin(&self, index: u32) -> Option<Option<Nanos>> {
        let slot = &self.slots[index as usize];
        if self.is_spent(index) {
            return None;
        }
        match self.traffic {
            Traffic::Off => None,
            Traffic::Closed if slot.in_flight() >= self.depth || self.left == Some(0) => None,
            Traffic::Closed if index as usize >= self.busy => None,
            Traffic::Closed => Some(None),
            Traffic::Open(_) if index as usize >= self.busy || slot.next >= self.due_of(index as usize) => None,
            Traffic::Open(schedule) => Some(Some(schedule.due(u64::from(index) + slot.next * self.busy as u64))),
        }
    }

    /// Notes that a slot begins a message, which [may](Load::may_begin) be and was due then.
    fn begin(&mut self, index: u32, end: u64, due: Option<Nanos>, sent: Nanos) {
        let slot = &mut self.slots[index as usize];
        if let Some(due) = due {
            slot.next += 1;
            if slot.was_free(due) {
                self.record.left(due, sent);
            }
        } else {
            self.left = self.left.map(|left| left - 1);
            self.record.due_at(sent);
        }
        let due = due.unwrap_or(sent);
        slot.begun += 1;
        slot.flights.push_back(Flight { end, due, sent });
        self.timeouts.arm(slot, index, sent);
        self.in_flight += 1;
        self.begun += 1;
    }

    /// Notes answers of `bytes` in all to messages like `first`.
    fn answered(&mut self, count: u64, bytes: u64, first: Flight, now: Nanos, index: usize) {
        (self.last_sign, self.futile, self.answered_at) = (now, 0, now);
        let backend = self.slots[index].backend;
        self.record.answered(count, bytes, first.due, first.sent, now, backend);
        // Datagrams promise no time.
        if self.late_is_error && now.saturating_sub(first.sent) > self.timeouts.timeout() {
            let serial = self.slots[index].serial;
            let took = Duration::from_nanos(now - first.sent);
            let text = || format!("connection {serial}: a reply took {:.3} s", took.as_secs_f64());
            self.record.errors(ErrorKind::ReplyTimeout, index, count, text);
        }
    }

    /// Notes that something went wrong with a slot's connection, which is over with that, and what becomes of its messages.
    fn fail(&mut self, index: usize, kind: ErrorKind, text: String, outcome: Outcome) {
        self.record.error(kind, index, || text);
        self.set_stage(index, Stage::Failed);
        let now = self.clock.read();
        let slot = &mut self.slots[index];
        self.in_flight -= slot.in_flight();
        slot.answered_early = 0;
        for flight in slot.flights.drain(..).filter(|flight| flight.sent != slot::ANSWERED) {
            self.record.lost(1, flight.due, Some(flight.sent), now, outcome, slot.backend);
        }
    }
}
