//! The connections, the ready queue, and the turn of the loop.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use log::{Level, debug, log_enabled, trace};
use mio::Token;
use slab::Slab;

use super::acceptor::{Accepted, Acceptor, Listen};
use super::close_reason::CloseReason;
use super::connection::{Connection, Input, Received};
use super::counters::{Counters, ListenerCounters};
use super::poller::Poller;
use super::protocol::Protocol;
use super::settings::Settings;
use super::source::{Readiness, Source, shortest};
use super::stream::Stream;
use super::timer_wheel::{Millis, TimerWheel};
use super::transport::{Now, Transport};
use crate::count::counted;

/// Memory that must be left before another connection is added, for what its protocol and its timers may take, in bytes.
const HEADROOM: usize = 64 * 1024;

/// The origin of a connection that no listener accepted, or one of those that are too many to be counted each.
const OWN: u16 = u16::MAX;

/// How many connections give way to others in a turn.
const MAX_GIVING_WAY: usize = 64;

/// What a connection is doing, as far as can be seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// Nothing moved recently.
    Idle,
    /// Bytes moved recently.
    Active,
    /// It is being closed, and its peer's end is awaited.
    Closing,
    /// Bytes wait until its socket is WRITABLE.
    Waiting,
}

struct Slot<S, T> {
    connection: Connection<S>,
    state: T,
}

/// The connections of a protocol, and which of them can make a step.
pub struct Reactor<S, P: Protocol<S>>
where
    S: Stream,
{
    slots: Slab<Slot<S, P::State>>,
    /// The ready queue: keys of connections that can make a step without waiting for an event, first come first served,
    /// and each once in a turn.
    ready: VecDeque<u32>,
    /// A connection was dropped while its key was in the ready queue.
    orphaned: bool,
    /// The one buffer that all connections are read into.
    scratch: Box<[u8]>,
    acceptor: Acceptor<S>,
    protocol: P,
    settings: Settings,
    counters: Counters,
    /// By the number of the listener.
    listeners: Vec<ListenerCounters>,
    /// By slot, the number of the listener that its connection came from, or [`OWN`]. Empty if none came from any.
    origins: Vec<u16>,
    /// Readiness events since the last turn.
    noted: u64,
    began: Instant,
    now: Now,
    idle: Option<(Millis, TimerWheel)>,
    closing: TimerWheel,
    /// The protocol's own deadlines, in ticks of [`Protocol::TICK`] since the reactor began.
    deadlines: TimerWheel,
    draining: bool,
}

impl<S: Stream, P: Protocol<S>> Reactor<S, P> {
    /// A reactor without listeners and connections.
    pub fn new(protocol: P, settings: Settings) -> Self {
        let idle = settings.idle_timeout.map(millis).map(|timeout| (timeout, TimerWheel::for_timeout(timeout)));
        let began = Instant::now();
        Reactor {
            slots: Slab::new(),
            ready: VecDeque::new(),
            orphaned: false,
            scratch: vec![0; settings.max_read_size].into_boxed_slice(),
            acceptor: Acceptor::new(),
            protocol,
            settings,
            counters: Counters::default(),
            listeners: Vec::new(),
            origins: Vec::new(),
            noted: 0,
            began,
            now: Now { instant: began, millis: 0 },
            idle,
            closing: TimerWheel::for_timeout(millis(super::CLOSE_TIMEOUT)),
            // To within a tick; asked again once a revolution if farther ahead.
            deadlines: TimerWheel::new(1, 1024),
            draining: false,
        }
    }

    /// Accepts connections from the listener that `make` returns, registered under the token it is given.
    ///
    /// # Errors
    ///
    /// What `make` returns; nothing is added then.
    pub fn listen<L>(&mut self, make: impl FnOnce(Token) -> io::Result<L>) -> io::Result<()>
    where
        L: Listen<Stream = S> + 'static,
    {
        let listener = make(self.acceptor.next_token(&self.settings))?;
        self.acceptor.add(Box::new(listener));
        if self.listeners.len() < usize::from(OWN) {
            self.listeners.push(ListenerCounters::default());
        }
        Ok(())
    }

    /// Accepts further connections while there are fewer than this. Those that are open already stay.
    pub fn set_max_connections(&mut self, max_connections: usize) {
        self.settings.max_connections = max_connections;
    }

    /// Accepts up to `limit` further connections, and leaves others in the backlog; `None`: any number.
    pub fn set_accept_limit(&mut self, limit: Option<u64>) {
        self.acceptor.set_limit(limit);
    }

    /// Stops listening at once. Connections in the backlog are reset by the kernel.
    pub fn stop_listening(&mut self) {
        self.acceptor.close();
    }

    /// Whether anything is listening.
    pub fn is_listening(&self) -> bool {
        !self.acceptor.is_closed()
    }

    /// Whether further connections may be waiting for which there is no room.
    pub fn is_crowded(&self) -> bool {
        self.slots.len() >= self.settings.max_connections && self.acceptor.is_ready()
    }

    /// Whether accepting pauses because the system had no descriptor or no memory for a connection.
    pub fn is_starved(&self) -> bool {
        self.acceptor.is_starved()
    }

    /// Adds a connection that has been established: `make` returns its socket, registered under the token it is given,
    /// and its state.
    ///
    /// # Errors
    ///
    /// What `make` returns, or that there is no memory for it; nothing is added then.
    pub fn open(&mut self, make: impl FnOnce(Token, &mut P) -> io::Result<(S, P::State)>) -> io::Result<Token> {
        let token = self.insert(false, None, make)?;
        self.with(token, |protocol, transport, state| protocol.opened(transport, state));
        Ok(token)
    }

    /// Adds a connection that is being opened: as [`open`](Reactor::open), but `opened` is called, or `closed`, when it is
    /// known how that went.
    ///
    /// # Errors
    ///
    /// What `make` returns, or that there is no memory for it; nothing is added then.
    pub fn connect(&mut self, make: impl FnOnce(Token, &mut P) -> io::Result<(S, P::State)>) -> io::Result<Token> {
        let token = self.insert(true, None, make)?;
        self.arm(self.key(token));
        Ok(token)
    }

    fn insert(
        &mut self,
        connecting: bool,
        listener: Option<usize>,
        make: impl FnOnce(Token, &mut P) -> io::Result<(S, P::State)>,
    ) -> io::Result<Token> {
        self.reserve(listener.is_some())?;
        // A key that a connection has left behind in the ready queue must not become its successor's second one.
        if std::mem::take(&mut self.orphaned) {
            self.ready.retain(|&key| self.slots.contains(key as usize));
        }
        let entry = self.slots.vacant_entry();
        let key = entry.key();
        let token = Token(self.settings.first_token + key);
        let (socket, state) = make(token, &mut self.protocol)?;
        entry.insert(Slot { connection: Connection::new(socket, connecting, self.now.millis), state });
        self.counters.opened += 1;
        self.note_origin(key, listener);
        self.counters.peak = self.counters.peak.max(self.slots.len() as u64);
        if let Some((timeout, wheel)) = &mut self.idle {
            wheel.arm(key, self.now.millis + *timeout, self.now.millis);
        }
        if self.draining && !connecting {
            self.look_again(key);
        }
        Ok(token)
    }

    /// Makes room for one connection more, so that adding it cannot run out of memory, which would end the process.
    fn reserve(&mut self, accepted: bool) -> io::Result<()> {
        let (len, capacity) = (self.slots.len(), self.slots.capacity());
        let no_memory = |_| io::Error::from(ErrorKind::OutOfMemory);
        // Neither the slab nor a protocol's state can be asked; so it is seen first whether as much can be had.
        let growth = if len == capacity { capacity.max(4) * 2 * size_of::<(usize, Slot<S, P::State>)>() } else { 0 };
        Vec::<u8>::new().try_reserve_exact(growth + HEADROOM).map_err(no_memory)?;
        if accepted {
            self.origins.try_reserve((capacity + 1).saturating_sub(self.origins.len())).map_err(no_memory)?;
        }
        self.ready.try_reserve((len + 1).saturating_sub(self.ready.len())).map_err(no_memory)
    }

    /// Notes which listener the connection in a slot came from, if it came from one.
    fn note_origin(&mut self, key: usize, listener: Option<usize>) {
        let origin = listener.and_then(|number| u16::try_from(number).ok()).unwrap_or(OWN);
        if let Some(counters) = self.listeners.get_mut(usize::from(origin)) {
            counters.accepted += 1;
            counters.open += 1;
            self.origins.resize(self.origins.len().max(key + 1), OWN);
        }
        if let Some(there) = self.origins.get_mut(key) {
            *there = origin;
        }
    }

    /// Lets the protocol act on one connection outside of an event, as to send what has become due. Returns whether the
    /// connection was there.
    pub fn with(&mut self, token: Token, act: impl FnOnce(&mut P, &mut Transport<'_, S>, &mut P::State)) -> bool {
        self.step(self.key(token), |protocol, transport, state, _| {
            act(protocol, transport, state);
            transport.check()
        })
    }

    /// Ends everything in good order, as a stop does: connections in a backlog are still accepted, each connection is
    /// read until nothing is left, what waits for it is sent, and then it is closed. The caller bounds the time that
    /// takes, with [`abort_all`](Reactor::abort_all).
    pub fn drain(&mut self) {
        self.draining = true;
        self.acceptor.close_backlogs();
        let keys: Vec<usize> = self.slots.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.look_again(key);
        }
    }

    /// Tries a connection's socket in the next turn, whatever was known of it, until a read says WouldBlock: an event that has
    /// not been seen yet may be about urgent data, in front of which a read ends.
    fn look_again(&mut self, key: usize) {
        let connection = &mut self.slots[key].connection;
        connection.note(true, true, true);
        self.queue(key);
    }

    /// Drops one connection, if it is there.
    pub fn abort(&mut self, token: Token) {
        let key = self.key(token);
        if self.slots.contains(key) {
            self.remove(key, CloseReason::Aborted);
        }
    }

    /// Drops a connection as it goes when its process ends: the kernel sends what it has taken, then the end, and answers what
    /// comes after that with a reset (close(2); RFC 1122, 4.2.2.13). For programs that try what others make of it.
    pub fn forget(&mut self, token: Token) {
        let key = self.key(token);
        if self.slots.contains(key) {
            self.remove(key, CloseReason::Finished);
        }
    }

    /// Drops all connections that are left, and stops listening.
    pub fn abort_all(&mut self) {
        self.acceptor.close();
        let keys: Vec<usize> = self.slots.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.remove(key, CloseReason::Aborted);
        }
    }

    /// The number of connections that can make a step without an event.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The number of connections.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What came of each listener, in the order in which they were added.
    pub fn listeners(&self) -> &[ListenerCounters] {
        &self.listeners
    }

    /// How it behaves.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the connection in the slot with this number is doing, if there is one: `Active` if a byte moved within
    /// `recent`. Slots are numbered from 0, and used again.
    pub fn activity(&self, slot: usize, recent: Duration) -> Option<Activity> {
        let connection = &self.slots.get(slot)?.connection;
        Some(if connection.waiting() > 0 {
            Activity::Waiting
        } else if connection.is_closing() {
            Activity::Closing
        } else if self.now.millis.saturating_sub(connection.moved_at) <= millis(recent) {
            Activity::Active
        } else {
            Activity::Idle
        })
    }

    /// The number of slots, those included that are free at present.
    pub fn slots(&self) -> usize {
        self.slots.capacity()
    }

    /// The tokens of all connections.
    pub fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.slots.iter().map(|(key, _)| Token(self.settings.first_token + key))
    }

    /// The protocol.
    pub fn protocol(&self) -> &P {
        &self.protocol
    }

    /// The protocol, to change it.
    pub fn protocol_mut(&mut self) -> &mut P {
        &mut self.protocol
    }

    /// Runs until nothing is listening and no connection is left: the loop of a program that is this reactor and
    /// nothing else.
    ///
    /// # Errors
    ///
    /// If the poll fails.
    pub fn run(&mut self, poller: &mut Poller) -> io::Result<()> {
        while self.is_listening() || !self.is_empty() {
            let (now, events) = poller.wait(self.sleep(Instant::now()))?;
            self.turn_with(now, events);
        }
        Ok(())
    }

    /// The slab's key of a token; of one that is not this reactor's, a key that no connection has.
    fn key(&self, token: Token) -> usize {
        token.0.wrapping_sub(self.settings.first_token)
    }

    /// Makes the steps that the connection under `key` can make now, within its budget.
    fn serve(&mut self, key: usize) {
        let (budget, draining) = (self.settings.read_budget, self.draining);
        self.step(key, |protocol, transport, state, scratch| {
            transport.connection.queued = false;
            drive(protocol, transport, state, scratch, budget)?;
            if draining && transport.connection.is_read_drained() {
                transport.close();
            }
            Ok(())
        });
    }

    /// Runs `act` on the connection under `key`, if there is one, and does what follows from it: the end, the ready
    /// queue, the deadlines. Returns whether there was one.
    fn step(
        &mut self,
        key: usize,
        act: impl FnOnce(&mut P, &mut Transport<'_, S>, &mut P::State, &mut [u8]) -> Result<(), CloseReason>,
    ) -> bool {
        let Some(Slot { connection, state }) = self.slots.get_mut(key) else { return false };
        let mut transport = Transport::new(connection, &mut self.counters, key, self.now, &self.settings);
        let acted = act(&mut self.protocol, &mut transport, state, &mut self.scratch);
        match acted.and_then(|()| Ok(transport.settle()?)) {
            Ok(true) => self.remove(key, CloseReason::Finished),
            Ok(false) => {
                self.queue(key);
                self.arm(key);
            }
            Err(reason) => self.remove(key, reason),
        }
        true
    }

    /// Ticks of the protocol's deadlines since the reactor began, at the beginning of this turn.
    fn ticks(&self) -> u64 {
        nanos(self.now.instant.saturating_duration_since(self.began)) / nanos(P::TICK)
    }

    /// Puts a connection into the ready queue, if it can make a step and is not there yet.
    fn queue(&mut self, key: usize) {
        let connection = &mut self.slots[key].connection;
        if !connection.queued && connection.has_work(P::FULL_DUPLEX) {
            connection.queued = true;
            self.ready.push_back(key as u32);
        }
    }

    /// Makes sure that a connection is looked at when its closing is due, or until it is closed its protocol's deadline.
    fn arm(&mut self, key: usize) {
        let Slot { connection, state } = &self.slots[key];
        if let Some(due) = connection.closing_due() {
            self.closing.arm(key, due, self.now.millis);
        } else if let Some(due) = self.protocol.deadline(state) {
            self.deadlines.arm(key, ticks_until::<S, P>(self.began, due), self.ticks());
        }
    }

    /// Deals with the connections whose time has run out.
    fn expire(&mut self) {
        let now = self.now.millis;
        let mut overdue = Vec::new(); // allocates nothing while nobody is
        if let Some((timeout, wheel)) = &mut self.idle {
            wheel.expire(now, |key| {
                let connection = &self.slots.get(key)?.connection;
                if connection.closing_due().is_some() {
                    return None; // that deadline is nearer, or as good
                }
                pending(connection.moved_at + *timeout, now, || overdue.push(key))
            });
        }
        for key in overdue.drain(..) {
            self.expire_idle(key);
        }
        self.closing
            .expire(now, |key| pending(self.slots.get(key)?.connection.closing_due()?, now, || overdue.push(key)));
        for key in overdue.drain(..) {
            let unsent = self.slots.get(key).is_some_and(|slot| slot.connection.would_lose_bytes());
            self.remove(key, if unsent { CloseReason::Stalled } else { CloseReason::Finished });
        }
        if !self.deadlines.is_empty() {
            let (began, now) = (self.began, self.ticks());
            self.deadlines.expire(now, |key| {
                let Slot { connection, state } = self.slots.get(key)?;
                let due = self.protocol.deadline(state).filter(|_| connection.closing_due().is_none())?;
                pending(ticks_until::<S, P>(began, due), now, || overdue.push(key))
            });
        }
        for key in overdue {
            if self.slots.get(key).is_some_and(|slot| slot.connection.only_flushes()) {
                self.remove(key, CloseReason::Stalled); // there is nothing that its protocol could do
                continue;
            }
            self.with(Token(self.settings.first_token + key), |protocol, transport, state| {
                protocol.expired(transport, state);
            });
        }
    }

    /// Closes a connection on which nothing moved for the idle timeout, after asking the socket itself. The kernel reports
    /// WRITABLE only when a good part of the send buffer is free (a third, on Linux), so a slow reader may have taken
    /// bytes for long without an event: if the socket takes some now, the peer is slow and not stalled (the trap of
    /// Envoy issue 34035).
    fn expire_idle(&mut self, key: usize) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let moved_at = slot.connection.moved_at;
        slot.connection.note(true, true, false);
        self.serve(key);
        let Some(slot) = self.slots.get(key) else { return };
        if slot.connection.closing_due().is_some() {
            return;
        }
        if slot.connection.moved_at > moved_at {
            if let Some((timeout, wheel)) = &mut self.idle {
                wheel.arm(key, slot.connection.moved_at + *timeout, self.now.millis);
            }
        } else if slot.connection.waiting() > 0 {
            self.remove(key, CloseReason::Stalled);
        } else {
            self.remove(key, CloseReason::Idle);
        }
    }

    /// The connections that have had everything, and give way to others that wait in a backlog. Only at a stop: it has a
    /// deadline, and those that wait would get nothing. At other times they can wait for the lingering close.
    fn giving_way(&self) -> impl Iterator<Item = usize> + '_ {
        let needed = self.draining && self.acceptor.needs_room(self.slots.len(), self.settings.max_connections);
        let slots = needed.then(|| self.slots.iter().filter(|(_, slot)| slot.connection.is_lingering()));
        slots.into_iter().flatten().map(|(key, _)| key)
    }

    fn give_way(&mut self) {
        for key in self.giving_way().take(MAX_GIVING_WAY).collect::<Vec<_>>() {
            self.remove(key, CloseReason::Finished);
        }
    }

    /// Accepts the connections that wait at the listeners, as far as there is room.
    fn accept(&mut self) {
        let mut acceptor = std::mem::replace(&mut self.acceptor, Acceptor::new());
        let (now, connections, max) = (self.now.instant, self.slots.len(), self.settings.max_connections);
        let pauses = acceptor.turn(now, connections, max, |number, listener| self.accept_one(number, listener));
        self.counters.accept_pauses += pauses;
        self.acceptor = acceptor;
    }

    fn accept_one(&mut self, number: usize, listener: &mut dyn Listen<Stream = S>) -> io::Result<Accepted> {
        let now = self.now.instant;
        let label = self.settings.label(self.slots.vacant_key());
        let mut refused = false;
        let inserted = self.insert(false, Some(number), |token, protocol| {
            let (stream, origin) = listener.accept(token)?;
            match protocol.accept(origin, now) {
                Ok(state) => {
                    debug!("{label}: accepted {origin}");
                    Ok((stream, state))
                }
                Err(refusal) => {
                    debug!("refused {origin}: {refusal}");
                    refused = true;
                    Err(ErrorKind::PermissionDenied.into())
                }
            }
        });
        match inserted {
            Ok(token) => {
                self.with(token, |protocol, transport, state| protocol.opened(transport, state));
                Ok(Accepted::Connection)
            }
            Err(_) if refused => {
                if let Some(counters) = self.listeners.get_mut(number) {
                    counters.refused += 1;
                }
                Ok(Accepted::Refused)
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&mut self, key: usize, reason: CloseReason) {
        let mut slot = self.slots.remove(key);
        self.orphaned |= slot.connection.queued;
        self.counters.close(reason.index(), slot.connection.age(self.now.millis));
        self.counters.waiting_bytes -= slot.connection.waiting() as u64;
        let origin = self.origins.get(key).copied().unwrap_or(OWN);
        if let Some(listener) = self.listeners.get_mut(usize::from(origin)) {
            listener.open -= 1;
        }
        let token = Token(self.settings.first_token + key);
        let waiting = slot.connection.waiting();
        let dropped = if waiting > 0 { ", with bytes unsent" } else { "" };
        trace!("{}: closed: {reason}{dropped}", self.settings.label(key));
        if waiting > 0 {
            self.protocol.unsent(&mut slot.state, waiting);
        }
        // Part of an answer must not look like the whole.
        let in_order = matches!(reason, CloseReason::Finished | CloseReason::Idle);
        if !in_order && slot.connection.would_lose_bytes() {
            slot.connection.socket.reset_on_drop();
        }
        self.protocol.closed(token, slot.state, &reason);
        // Dropping the socket closes it, and closing takes it out of the poll.
    }
}

impl<S: Stream, P: Protocol<S>> Source for Reactor<S, P> {
    /// Notes what became ready. Slab keys are reused, so an event may have been meant for a connection that is gone, and
    /// reach its successor (mio issues 172 and 219); a connection may have been served before its event is seen. All
    /// that comes of it is a call that says WouldBlock.
    fn note(&mut self, readiness: Readiness) {
        let key = self.key(readiness.token);
        let Some(slot) = self.slots.get_mut(key) else {
            return match self.acceptor.note(key) {
                Some(number) => trace!("{}: ready", self.settings.listener_label(number)),
                None => trace!("{}: stale event: its connection is gone", self.settings.label(key)),
            };
        };
        self.noted += 1;
        trace!(
            "{}: ready:{}{}{}{}",
            self.settings.label(key),
            if readiness.readable { " READABLE" } else { "" },
            if readiness.writable { " WRITABLE" } else { "" },
            if readiness.read_closed { " READ_CLOSED" } else { "" },
            if readiness.urgent { " URGENT" } else { "" }
        );
        slot.connection.note(readiness.readable, readiness.writable, readiness.read_closed | readiness.urgent);
        self.queue(key);
    }

    /// Serves every connection that can make a step once, deals with those whose time has run out, and accepts others.
    fn turn(&mut self, now: Instant) {
        self.now = Now { instant: now, millis: millis(now.saturating_duration_since(self.began)) };
        let noted = std::mem::take(&mut self.noted);
        self.counters.events += noted;
        self.counters.turn(noted);
        // A connection that is queued from here on had its turn and waits for the next one.
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { break };
            self.serve(key as usize);
        }
        self.expire();
        self.give_way();
        self.accept();
        if !self.ready.is_empty() {
            trace!("queue: {} ready, so the next turn comes without a sleep", self.ready.len());
        }
    }

    fn sleep(&self, now: Instant) -> Option<Duration> {
        if !self.ready.is_empty() || self.giving_way().next().is_some() {
            return Some(Duration::ZERO);
        }
        let idle = self.idle.as_ref().and_then(|(_, wheel)| wheel.next_due());
        let closing = [idle, self.closing.next_due()].into_iter().flatten().min().map(Duration::from_millis);
        let deadline = self.deadlines.next_due().map(|due| Duration::from_nanos(due * nanos(P::TICK)));
        let since_began = now.saturating_duration_since(self.began);
        let timers = shortest([closing, deadline]).map(|due| due.saturating_sub(since_began));
        shortest([timers, self.acceptor.sleep(now, self.slots.len(), self.settings.max_connections)])
    }
}

/// Makes the steps that one connection can make without waiting, until it has received `budget` bytes.
fn drive<S: Stream, P: Protocol<S>>(
    protocol: &mut P,
    transport: &mut Transport<'_, S>,
    state: &mut P::State,
    scratch: &mut [u8],
    budget: usize,
) -> Result<(), CloseReason> {
    if transport.connection.is_connecting() {
        if !transport.connection.establish()? {
            return Ok(());
        }
        protocol.opened(transport, state);
        transport.check()?;
    }
    if transport.flush()? || transport.connection.take_call_again() {
        protocol.flushed(transport, state);
        transport.check()?;
    }
    let mut left = budget;
    while transport.connection.may_receive(P::FULL_DUPLEX) {
        if left == 0 {
            trace!("{}: budget spent: back to the ready queue", transport.label());
            break;
        }
        let size = transport.read_size();
        let drained = match transport.receive(&mut scratch[..size])? {
            Received::Bytes { count, drained } => {
                left = left.saturating_sub(count);
                if transport.connection.input() == Input::Open {
                    transport.counters.received_bytes += count as u64;
                    protocol.received(transport, state, &scratch[..count]);
                    if count >= transport.settings.read_size {
                        transport.grow(count);
                    }
                }
                drained
            }
            Received::WouldBlock => true,
            Received::End => {
                protocol.eof(transport, state);
                false
            }
        };
        transport.check()?;
        if drained && transport.connection.input() == Input::Open {
            protocol.read_drained(transport, state);
            transport.check()?;
        }
    }
    if log_enabled!(Level::Trace) && !P::FULL_DUPLEX && transport.is_held_up() {
        trace!(
            "{}: reading paused until WRITABLE: {} to send",
            transport.label(),
            counted(transport.waiting(), "byte")
        );
    }
    Ok(())
}

/// A deadline that is still ahead; for one that is not, `overdue` is called.
fn pending(due: Millis, now: Millis, overdue: impl FnOnce()) -> Option<Millis> {
    if due <= now {
        overdue();
        return None;
    }
    Some(due)
}

fn millis(duration: Duration) -> Millis {
    // Half of what there is, so that a sum of a time and a timeout does not overflow.
    Millis::try_from(duration.as_millis()).map_or(Millis::MAX / 2, |millis| millis.min(Millis::MAX / 2))
}

/// Ticks of a protocol's deadlines from `began` to `due`, rounded up: no time runs out early.
fn ticks_until<S: Stream, P: Protocol<S>>(began: Instant, due: Instant) -> u64 {
    nanos(due.saturating_duration_since(began)).div_ceil(nanos(P::TICK))
}

/// Nanoseconds, for the next 292 years.
const fn nanos(duration: Duration) -> u64 {
    let (nanos, most) = (duration.as_nanos(), u64::MAX / 2);
    if nanos < most as u128 { nanos as u64 } else { most }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
