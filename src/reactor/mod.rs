//! The event loop: it knows sockets, and knows no protocol.
//!
//! A [`Reactor`] keeps the connections in a slab, remembers which of them can make progress, and drives a
//! [`Protocol`], in the shape that Twisted and asyncio made familiar: a connection was *made*, bytes were
//! *received*, the socket ran *dry*, what waited was *drained*, the peer *ended* its side, the connection was *lost*.
//! A protocol answers through its [`Transport`]: `send`, `finish`.
//!
//! The loop is `poll`, then [`turn`](Reactor::turn). [`Poller`] is the poll: mio's, with a few lines around it. The
//! turn is given what became ready and the time, and touches the world only through [`Stream`], so that a test can
//! be the kernel and the clock. What accepts connections, and when to stop, is its owner's business.
//!
//! # A protocol of your own
//!
//! RFC 863's discard service, whole:
//!
//! ```
//! use echoloop::reactor::{Transport, Poller, Protocol, Reactor, Settings, Stream};
//! use std::io::Write;
//! use std::time::{Duration, Instant};
//!
//! /// Throws away what it receives, and counts it.
//! #[derive(Default)]
//! struct Discard {
//!     bytes: usize,
//! }
//!
//! impl<S: Stream> Protocol<S> for Discard {
//!     type State = (); // nothing to remember about a connection
//!
//!     fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), bytes: &[u8]) {
//!         self.bytes += bytes.len();
//!     }
//! }
//!
//! let mut poller = Poller::new(Duration::ZERO)?;
//! let mut reactor = Reactor::new(Discard::default(), Settings::default());
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let mut client = std::net::TcpStream::connect(listener.local_addr()?)?;
//! let accepted = listener.accept()?.0;
//! accepted.set_nonblocking(true)?;
//! let registry = poller.registry();
//! reactor.open(|token, _| {
//!     let mut stream = mio::net::TcpStream::from_std(accepted);
//!     registry.register(&mut stream, token, Poller::interest())?;
//!     Ok((stream, ()))
//! })?;
//!
//! client.write_all(b"into the void")?;
//! drop(client);
//! while !reactor.is_empty() {
//!     let (now, ready) = poller.wait(reactor.sleep(Instant::now()))?;
//!     reactor.turn(now, ready);
//! }
//! assert_eq!(reactor.protocol().bytes, 13);
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod address;
mod connection;
mod outbound;
mod poller;
pub mod socket;
#[cfg(test)]
mod tests;
mod timer_wheel;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use log::{debug, trace};
use mio::Token;
use serde::Serialize;
use slab::Slab;

use connection::{Connection, Input, Received};
use timer_wheel::{Millis, TimerWheel};

pub use connection::{SHORT_IS_CONCLUSIVE, Stream};
pub use poller::Poller;

/// How long a connection that has sent everything waits for the peer's end, counted from the last byte moved, before
/// it is closed regardless. A bound is needed, for a peer may never close.
pub const LINGER: Duration = Duration::from_secs(2);

/// Bytes received in a round before those who sent them are served.
const ROUND: usize = 16 * 1024;

/// What a service does with its connections. One value serves all of them; what must be remembered about one is its
/// `State`.
pub trait Protocol<S: Stream>: Sized {
    /// What is remembered about each connection. Idle connections pay for its size; keep it small, or boxed.
    type State;

    /// Whether a connection is read while bytes for its peer wait. A server says no: a peer that sends and never
    /// reads is then not read either, and its memory stays bounded by one read. A client of such a server must say
    /// yes, or the two would wait for each other.
    const FULL_DUPLEX: bool = false;

    /// A connection was made.
    fn opened(&mut self, _transport: &mut Transport<'_, S>, _state: &mut Self::State) {}

    /// Bytes were received: the next ones of the stream, cut anywhere.
    fn received(&mut self, transport: &mut Transport<'_, S>, state: &mut Self::State, bytes: &[u8]);

    /// Everything that had arrived has been received.
    fn read_drained(&mut self, _transport: &mut Transport<'_, S>, _state: &mut Self::State) {}

    /// Everything that waited to be sent has been taken by the socket.
    fn flushed(&mut self, _transport: &mut Transport<'_, S>, _state: &mut Self::State) {}

    /// The peer has closed its side; everything it sent has been received, or thrown away after
    /// [`finish`](Transport::finish). By default our side is closed too, once what waits has been sent.
    fn eof(&mut self, transport: &mut Transport<'_, S>, _state: &mut Self::State) {
        transport.close();
    }

    /// The connection is gone.
    fn closed(&mut self, _token: Token, _state: Self::State, _reason: &CloseReason) {}
}

/// Why a connection is gone.
#[derive(Debug)]
pub enum CloseReason {
    /// Everything was sent, and both sides were closed (or the peer did not close its side within [`LINGER`]).
    Finished,
    /// A call on the socket failed: the peer reset the connection, vanished, or never answered.
    Failed(io::Error),
    /// Nothing moved for the idle timeout.
    Idle,
    /// Bytes waited, and the peer took none for the idle timeout.
    Stalled,
    /// Its owner gave it up, as when a stop took too long.
    Aborted,
    /// Its protocol does not want it.
    Refused,
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        CloseReason::Failed(error)
    }
}

/// What a connection is doing, as far as can be seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// Nothing moved lately.
    Idle,
    /// Bytes moved lately.
    Active,
    /// It is being closed, and its peer's end is awaited.
    Closing,
    /// Bytes wait until its socket is WRITABLE.
    Waiting,
}

/// What the reactor counts. All numbers only grow, `waiting` excepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Connections made.
    pub made: u64,
    /// The most connections at once.
    pub peak: u64,
    /// Connections lost, by [`CloseReason`].
    pub finished: u64,
    /// Connections that ended with a socket error.
    pub failed: u64,
    /// Connections closed by the idle timeout.
    pub idle: u64,
    /// Connections closed because their peer took nothing for the idle timeout.
    pub stalled: u64,
    /// Connections given up with bytes unsent or the peer's end unseen.
    pub aborted: u64,
    /// Connections that the protocol refused.
    pub refused: u64,
    /// Bytes received, those thrown away excepted.
    pub bytes_in: u64,
    /// Bytes that sockets took.
    pub bytes_out: u64,
    /// Bytes that wait until their sockets are WRITABLE.
    pub waiting: u64,
    /// Sends of which the socket took only a part.
    pub partial_sends: u64,
    /// Reads that found nothing.
    pub would_block: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Readiness events.
    pub events: u64,
    /// Turns by the number of their events: see [`TURN_SIZES`].
    pub turn_sizes: [u64; TURN_SIZES.len()],
}

/// The classes of [`Counters::turn_sizes`]: up to so many events, and more than those before. `None`: any number.
pub const TURN_SIZES: [Option<u64>; 8] = [Some(0), Some(1), Some(4), Some(16), Some(64), Some(256), Some(1024), None];

impl Counters {
    /// Connections lost, for whatever reason.
    pub fn lost(&self) -> u64 {
        self.finished + self.failed + self.idle + self.stalled + self.aborted + self.refused
    }

    /// Connections there are.
    pub fn live(&self) -> u64 {
        self.made - self.lost()
    }
}

/// How a reactor behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes read at most at once, at first.
    pub read_size: usize,
    /// Up to so many for a peer that fills its reads and takes whole what it is sent; at least `read_size`. This is the most
    /// that one connection can have waiting to be echoed; one that has never been so fast has `read_size` at most.
    pub largest_read: usize,
    /// Bytes read from one connection in a turn before the others get theirs.
    pub read_budget: usize,
    /// Close connections on which nothing moved for so long.
    pub idle_timeout: Option<Duration>,
    /// See [`SHORT_IS_CONCLUSIVE`].
    pub short_is_conclusive: bool,
    /// The token of the first connection; the others' follow. So that several reactors can share a poll.
    pub first_token: usize,
}

impl Default for Settings {
    /// 64 KiB a read and up to 256 KiB, 256 KiB a turn, no idle timeout.
    fn default() -> Self {
        Settings {
            read_size: 64 * 1024,
            largest_read: 256 * 1024,
            read_budget: 256 * 1024,
            idle_timeout: None,
            short_is_conclusive: SHORT_IS_CONCLUSIVE,
            first_token: 0,
        }
    }
}

/// What a poll reports of one token. Only hints: see [`Reactor::turn`].
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
}

/// One connection, as its protocol sees it during a call.
pub struct Transport<'a, S> {
    connection: &'a mut Connection<S>,
    counters: &'a mut Counters,
    token: Token,
    now: Millis,
    settings: &'a Settings,
    /// Why the connection is lost when the protocol's call returns.
    end: Option<CloseReason>,
}

impl<'a, S: Stream> Transport<'a, S> {
    fn new(
        connection: &'a mut Connection<S>,
        counters: &'a mut Counters,
        key: usize,
        now: Millis,
        settings: &'a Settings,
    ) -> Self {
        let token = Token(settings.first_token + key);
        Transport { connection, counters, token, now, settings, end: None }
    }

    /// Sends `bytes`: straight to the socket, and what it does not take waits until it is writable again. A failure
    /// is not reported here; the connection is then lost as soon as the protocol's call returns.
    ///
    /// After [`finish`](Transport::finish) nothing is sent.
    pub fn write(&mut self, bytes: &[u8]) {
        if !self.connection.is_open() || self.end.is_some() {
            return;
        }
        match self.connection.send(bytes, self.settings.short_is_conclusive, self.now) {
            Ok(taken) => {
                self.counters.bytes_out += taken as u64;
                if taken < bytes.len() {
                    self.counters.waiting += (bytes.len() - taken) as u64;
                    self.counters.partial_sends += 1;
                    trace!(
                        "token {}: sent {} of {}; {} wait for WRITABLE",
                        self.token.0,
                        HumanCount(taken as u64),
                        HumanCount(bytes.len() as u64),
                        HumanCount(self.connection.waiting() as u64)
                    );
                } else {
                    trace!("token {}: sent {} of {}", self.token.0, HumanCount(taken as u64), HumanCount(taken as u64));
                }
            }
            Err(error) => self.end = Some(error.into()),
        }
    }

    /// Has the connection closed at once, whatever waits, as soon as the protocol's call returns.
    pub fn abort(&mut self) {
        self.end.get_or_insert(CloseReason::Refused);
    }

    /// Closes the connection, after what has been sent has left. What the peer still sends is thrown away.
    pub fn close(&mut self) {
        self.connection.close();
    }

    /// Closes the sending side alone, after what has been sent has left, and goes on receiving.
    pub fn shutdown_write(&mut self) {
        self.connection.shutdown_write();
    }

    /// The number of bytes that were sent and wait for the socket to take them.
    pub fn waiting(&self) -> usize {
        self.connection.waiting()
    }

    /// The connection's token.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The connection's socket, to ask it something. Its reading and writing belong to the reactor.
    pub fn socket(&self) -> &S {
        &self.connection.socket
    }

    fn read_size(&self) -> usize {
        self.connection.read_size(self.settings.read_size, self.settings.largest_read)
    }

    fn grow(&mut self, count: usize) {
        self.connection.grow(count, self.settings.read_size, self.settings.largest_read);
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Received> {
        let received = self.connection.receive(into, self.settings.short_is_conclusive, self.now)?;
        match received {
            Received::Bytes { count, dry } => trace!(
                "token {}: read {} of {}{}",
                self.token.0,
                HumanCount(count as u64),
                HumanCount(into.len() as u64),
                if dry { " (short: dry)" } else { "" }
            ),
            Received::WouldBlock => {
                self.counters.would_block += 1;
                trace!("token {}: read: would block", self.token.0);
            }
            Received::End => trace!("token {}: read 0: the peer has closed its side", self.token.0),
        }
        Ok(received)
    }

    /// Sends what waits. Returns whether that drained it.
    fn flush(&mut self) -> io::Result<bool> {
        let waited = self.connection.waiting();
        let flushed = self.connection.flush(self.settings.short_is_conclusive, self.now);
        let left = self.connection.waiting();
        self.counters.waiting -= (waited - left) as u64; // before an error, too, some may have left
        let taken = flushed?;
        if waited == 0 || taken == 0 {
            return Ok(false);
        }
        self.counters.bytes_out += taken as u64;
        if left > 0 {
            self.counters.partial_sends += 1;
        }
        trace!(
            "token {}: WRITABLE: sent {} of {}; {}",
            self.token.0,
            HumanCount(taken as u64),
            HumanCount(waited as u64),
            if left > 0 { "the rest goes on waiting" } else { "drained, the buffer is given back" }
        );
        Ok(left == 0)
    }

    /// Whether the protocol's call has ended the connection, by a `send` that failed or by refusing it.
    fn check(&mut self) -> Result<(), CloseReason> {
        self.end.take().map_or(Ok(()), Err)
    }
}

struct Slot<S, T> {
    connection: Connection<S>,
    state: T,
}

/// What has been received from a connection before it is served.
struct Arrival {
    key: u32,
    /// Where its bytes lie in the buffer.
    at: usize,
    /// `None`: something else has to be done first.
    received: Option<Received>,
}

/// The connections, and which of them can make progress.
pub struct Reactor<S, P: Protocol<S>>
where
    S: Stream,
{
    slots: Slab<Slot<S, P::State>>,
    /// The ready queue: keys of connections that can make a step without waiting for an event, first come first
    /// served, and each once in a turn.
    ready: VecDeque<u32>,
    /// A connection was dropped while its key was in the ready queue.
    orphaned: bool,
    /// The one buffer that all connections are read into: a round's bytes, the read that ends the round, and one more
    /// for a connection that has more.
    scratch: Box<[u8]>,
    arrivals: Vec<Arrival>,
    protocol: P,
    settings: Settings,
    counters: Counters,
    began: Instant,
    now: Millis,
    idle: Option<(Millis, TimerWheel)>,
    lingering: TimerWheel,
    draining: bool,
}

impl<S: Stream, P: Protocol<S>> Reactor<S, P> {
    /// A reactor without connections.
    pub fn new(protocol: P, settings: Settings) -> Self {
        let idle = settings.idle_timeout.map(millis).map(|timeout| (timeout, TimerWheel::new(timeout)));
        Reactor {
            slots: Slab::new(),
            ready: VecDeque::new(),
            orphaned: false,
            scratch: vec![0; ROUND + 2 * settings.largest_read].into_boxed_slice(),
            arrivals: Vec::new(),
            protocol,
            settings,
            counters: Counters::default(),
            began: Instant::now(),
            now: 0,
            idle,
            lingering: TimerWheel::new(millis(LINGER)),
            draining: false,
        }
    }

    /// Adds a connection that has been established: `make` returns its socket, registered under the token it is
    /// given, and its state.
    ///
    /// # Errors
    ///
    /// What `make` returns; nothing is added then.
    pub fn open(&mut self, make: impl FnOnce(Token, &mut P) -> io::Result<(S, P::State)>) -> io::Result<Token> {
        let token = self.insert(false, make)?;
        self.with(token, |protocol, transport, state| protocol.opened(transport, state));
        Ok(token)
    }

    /// Adds a connection that is being opened: as [`open`](Reactor::open), but `made` is called, or `lost`, when it
    /// is known how that went.
    ///
    /// # Errors
    ///
    /// What `make` returns; nothing is added then.
    pub fn connect(&mut self, make: impl FnOnce(Token, &mut P) -> io::Result<(S, P::State)>) -> io::Result<Token> {
        self.insert(true, make)
    }

    fn insert(
        &mut self,
        connecting: bool,
        make: impl FnOnce(Token, &mut P) -> io::Result<(S, P::State)>,
    ) -> io::Result<Token> {
        // A key that a connection has left behind in the ready queue must not become its successor's second one.
        if std::mem::take(&mut self.orphaned) {
            self.ready.retain(|&key| self.slots.contains(key as usize));
        }
        let entry = self.slots.vacant_entry();
        let key = entry.key();
        let token = Token(self.settings.first_token + key);
        let (socket, state) = make(token, &mut self.protocol)?;
        entry.insert(Slot { connection: Connection::new(socket, connecting, self.now), state });
        self.counters.made += 1;
        self.counters.peak = self.counters.peak.max(self.slots.len() as u64);
        if let Some((timeout, idle_wheel)) = &mut self.idle {
            idle_wheel.arm(key, self.now + *timeout, self.now);
        }
        Ok(token)
    }

    /// One turn of the loop: notes what became ready, serves every connection that can make progress once, and
    /// closes those whose time has run out.
    ///
    /// Readiness is a hint. Slab keys are reused, so an event may have been meant for a connection that is gone, and
    /// reach its successor (mio issues 172 and 219); a connection may have been served before its event is seen. All
    /// that comes of it is a call that says WouldBlock.
    pub fn turn(&mut self, now: Instant, ready: impl IntoIterator<Item = Readiness>) {
        self.now = millis(now.saturating_duration_since(self.began));
        self.counters.turns += 1;
        let before = self.counters.events;
        for readiness in ready {
            self.mark(readiness);
        }
        let events = self.counters.events - before;
        let class = TURN_SIZES.iter().take_while(|bound| bound.is_some_and(|bound| bound < events)).count();
        self.counters.turn_sizes[class] += 1;
        // Who is queued from here on had its turn and waits for the next one.
        let mut queued = self.ready.len();
        while queued > 0 {
            queued -= self.serve_round(queued);
        }
        self.expire();
    }

    /// How long the poll may sleep before the next turn; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let idle = self.idle.as_ref().and_then(|(_, idle_wheel)| idle_wheel.next_due());
        let due = [idle, self.lingering.next_due()].into_iter().flatten().min()?;
        Some(Duration::from_millis(due).saturating_sub(now.saturating_duration_since(self.began)))
    }

    /// Lets the protocol act on one connection outside of an event, as to send what has become due. Returns whether
    /// the connection was there.
    pub fn with(&mut self, token: Token, act: impl FnOnce(&mut P, &mut Transport<'_, S>, &mut P::State)) -> bool {
        self.step(self.key(token), |protocol, transport, state, _| {
            act(protocol, transport, state);
            transport.check()
        })
    }

    /// Ends all connections, as a stop does: each is read once more, what it is owed is sent, and then it is closed.
    pub fn drain(&mut self) {
        self.draining = true;
        for (key, slot) in &mut self.slots {
            slot.connection.mark(true, true, false);
            if !slot.connection.queued {
                slot.connection.queued = true;
                self.ready.push_back(key as u32);
            }
        }
    }

    /// Gives up one connection, if it is there.
    pub fn abort(&mut self, token: Token) {
        let key = self.key(token);
        if self.slots.contains(key) {
            self.remove(key, CloseReason::Aborted);
        }
    }

    /// Gives up all connections that are left.
    pub fn abort_all(&mut self) {
        let keys: Vec<usize> = self.slots.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.remove(key, CloseReason::Aborted);
        }
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

    /// What the connection with this number is doing, if there is one: `Active` if a byte moved within `lately`.
    /// Numbers are those of the slab's places: they begin at 0, and are used again.
    pub fn activity(&self, number: usize, lately: Duration) -> Option<Activity> {
        let connection = &self.slots.get(number)?.connection;
        Some(if connection.waiting() > 0 {
            Activity::Waiting
        } else if connection.is_closing() {
            Activity::Closing
        } else if self.now.saturating_sub(connection.moved_at) <= millis(lately) {
            Activity::Active
        } else {
            Activity::Idle
        })
    }

    /// The number of places in the slab, those included that are free at present.
    pub fn places(&self) -> usize {
        self.slots.capacity()
    }

    /// The protocol.
    pub fn protocol(&self) -> &P {
        &self.protocol
    }

    /// The protocol, to change it.
    pub fn protocol_mut(&mut self) -> &mut P {
        &mut self.protocol
    }

    /// The slab's key of a token; of one that is not this reactor's, a key that nobody has.
    fn key(&self, token: Token) -> usize {
        token.0.wrapping_sub(self.settings.first_token)
    }

    fn mark(&mut self, readiness: Readiness) {
        self.counters.events += 1;
        let key = self.key(readiness.token);
        let Some(slot) = self.slots.get_mut(key) else { return };
        trace!(
            "token {}: ready:{}{}{}",
            readiness.token.0,
            if readiness.readable { " READABLE" } else { "" },
            if readiness.writable { " WRITABLE" } else { "" },
            if readiness.read_closed { " READ_CLOSED" } else { "" }
        );
        let connection = &mut slot.connection;
        connection.mark(readiness.readable, readiness.writable, readiness.read_closed);
        self.queue(key);
    }

    /// Serves connections from the head of the ready queue, at most `queued` of them, and returns how many.
    ///
    /// First as many are received from as the buffer has room for, then each is served what it got: the kernel's
    /// receiving code stays in the processor's cache, and then its sending code does. A read that is large ends the
    /// round at once, for then it is the bytes that should stay in the cache.
    fn serve_round(&mut self, queued: usize) -> usize {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let (mut served, mut filled) = (0, 0);
        while served < queued && filled < ROUND {
            let Some(key) = self.ready.pop_front() else { break };
            served += 1;
            let Some(arrival) = self.receive_first(key, filled) else { continue };
            if let Some(Received::Bytes { count, .. }) = arrival.received {
                filled += count;
            }
            arrivals.push(arrival);
        }
        for arrival in arrivals.drain(..) {
            self.serve(arrival, filled);
        }
        self.arrivals = arrivals;
        served
    }

    /// Receives once from the connection under `key`, into the buffer from `at` on, if receiving is what it needs
    /// next. `None`: there is nobody to serve.
    fn receive_first(&mut self, key: u32, at: usize) -> Option<Arrival> {
        let connection = &mut self.slots.get_mut(key as usize)?.connection;
        connection.queued = false;
        if connection.has_work_before_receiving() || !connection.may_receive(P::FULL_DUPLEX) {
            return Some(Arrival { key, at, received: None });
        }
        let mut transport = Transport::new(connection, &mut self.counters, key as usize, self.now, &self.settings);
        let size = transport.read_size();
        match transport.receive(&mut self.scratch[at..at + size]) {
            Ok(received) => Some(Arrival { key, at, received: Some(received) }),
            Err(error) => {
                self.remove(key as usize, error.into());
                None
            }
        }
    }

    /// Makes the steps that one connection can make now, within its budget. The buffer is free from `filled` on.
    fn serve(&mut self, arrival: Arrival, filled: usize) {
        let (budget, draining) = (self.settings.read_budget, self.draining);
        self.step(arrival.key as usize, |protocol, transport, state, scratch| {
            let (arrived, free) = scratch.split_at_mut(filled);
            let first = arrival.received.map(|received| (received, &arrived[arrival.at..]));
            drive(protocol, transport, state, first, free, budget)?;
            if draining {
                transport.close();
            }
            Ok(())
        });
    }

    /// Runs `act` on the connection under `key`, if there is one, and does what follows from it: the end, the ready
    /// queue, the deadline. Returns whether there was one.
    fn step(
        &mut self,
        key: usize,
        act: impl FnOnce(&mut P, &mut Transport<'_, S>, &mut P::State, &mut [u8]) -> Result<(), CloseReason>,
    ) -> bool {
        let Some(Slot { connection, state }) = self.slots.get_mut(key) else { return false };
        let mut transport = Transport::new(connection, &mut self.counters, key, self.now, &self.settings);
        let acted = act(&mut self.protocol, &mut transport, state, &mut self.scratch);
        match acted.and_then(|()| Ok(transport.connection.settle()?)) {
            Ok(true) => self.remove(key, CloseReason::Finished),
            Ok(false) => {
                if connection.is_lingering() {
                    self.lingering.arm(key, connection.moved_at + millis(LINGER), self.now);
                }
                self.queue(key);
            }
            Err(reason) => self.remove(key, reason),
        }
        true
    }

    /// Puts a connection into the ready queue, if it can make progress and is not there yet.
    fn queue(&mut self, key: usize) {
        let connection = &mut self.slots[key].connection;
        if !connection.queued && connection.has_work(P::FULL_DUPLEX) {
            connection.queued = true;
            self.ready.push_back(key as u32);
        }
    }

    /// Closes the connections whose time has run out.
    fn expire(&mut self) {
        let mut overdue = Vec::new(); // allocates nothing while nobody is
        if let Some((timeout, idle_wheel)) = &mut self.idle {
            idle_wheel.expire(self.now, |key| {
                let due = self.slots.get(key)?.connection.moved_at + *timeout;
                if due <= self.now {
                    overdue.push(key);
                    return None;
                }
                Some(due)
            });
        }
        for key in overdue.drain(..) {
            self.expire_idle(key);
        }
        self.lingering.expire(self.now, |key| {
            let connection = &self.slots.get(key)?.connection;
            let due = connection.moved_at + millis(LINGER);
            if !connection.is_lingering() {
                return None;
            }
            if due <= self.now {
                overdue.push(key);
                return None;
            }
            Some(due)
        });
        for key in overdue {
            self.remove(key, CloseReason::Finished);
        }
    }

    /// Closes a connection on which nothing moved for the idle timeout, after asking the socket itself. The kernel
    /// reports WRITABLE only when a good part of the send buffer is free (a third, on Linux), so a slow reader may
    /// have taken bytes for long without an event: if the socket takes some now, the peer is slow and not stalled
    /// (the trap of Envoy issue 34035).
    fn expire_idle(&mut self, key: usize) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let moved_at = slot.connection.moved_at;
        slot.connection.mark(true, true, false);
        self.serve(Arrival { key: key as u32, at: 0, received: None }, 0);
        let Some(slot) = self.slots.get(key) else { return };
        if slot.connection.moved_at > moved_at {
            if let Some((timeout, idle_wheel)) = &mut self.idle {
                idle_wheel.arm(key, slot.connection.moved_at + *timeout, self.now);
            }
        } else if slot.connection.waiting() > 0 {
            self.remove(key, CloseReason::Stalled);
        } else if !slot.connection.is_lingering() {
            self.remove(key, CloseReason::Idle);
        }
    }

    fn remove(&mut self, key: usize, reason: CloseReason) {
        let slot = self.slots.remove(key);
        self.orphaned |= slot.connection.queued;
        let (count, cause): (_, &dyn std::fmt::Display) = match &reason {
            CloseReason::Finished => (&mut self.counters.finished, &"finished"),
            CloseReason::Failed(error) => (&mut self.counters.failed, error),
            CloseReason::Idle => (&mut self.counters.idle, &"idle"),
            CloseReason::Stalled => (&mut self.counters.stalled, &"stalled: its peer takes nothing"),
            CloseReason::Aborted => (&mut self.counters.aborted, &"aborted"),
            CloseReason::Refused => (&mut self.counters.refused, &"refused"),
        };
        *count += 1;
        self.counters.waiting -= slot.connection.waiting() as u64;
        let token = Token(self.settings.first_token + key);
        debug!("token {}: closed: {cause}", token.0);
        self.protocol.closed(token, slot.state, &reason);
        // Dropping the socket closes it, and closing takes it out of the poll.
    }
}

/// Makes the steps that one connection can make without waiting, until it has received `budget` bytes, `first` those
/// that have been received already.
fn drive<S: Stream, P: Protocol<S>>(
    protocol: &mut P,
    transport: &mut Transport<'_, S>,
    state: &mut P::State,
    mut first: Option<(Received, &[u8])>,
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
    if transport.flush()? {
        protocol.flushed(transport, state);
        transport.check()?;
    }
    let mut left = budget;
    loop {
        let (received, bytes) = match first.take() {
            Some(first) => first,
            None if !transport.connection.may_receive(P::FULL_DUPLEX) => break,
            None if left == 0 => {
                trace!("token {}: budget spent: back to the ready queue", transport.token.0);
                break;
            }
            None => {
                let size = transport.read_size();
                (transport.receive(&mut scratch[..size])?, &*scratch)
            }
        };
        let dry = match received {
            Received::Bytes { count, dry } => {
                left = left.saturating_sub(count);
                if transport.connection.input() == Input::Open {
                    transport.counters.bytes_in += count as u64;
                    protocol.received(transport, state, &bytes[..count]);
                    if count >= transport.settings.read_size {
                        transport.grow(count);
                    }
                }
                dry
            }
            Received::WouldBlock => true,
            Received::End => {
                protocol.eof(transport, state);
                false
            }
        };
        if dry && transport.connection.input() == Input::Open {
            protocol.read_drained(transport, state);
        }
        transport.check()?;
    }
    Ok(())
}

fn millis(duration: Duration) -> Millis {
    // Half of what there is, so that a sum of a time and a timeout does not overflow.
    Millis::try_from(duration.as_millis()).map_or(Millis::MAX / 2, |millis| millis.min(Millis::MAX / 2))
}
