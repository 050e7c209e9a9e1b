//! The load: a protocol whose connections send messages, check every byte that comes back, and time the replies.
//!
//! Each connection has a *place*. A place outlives its connection, for with `--reconnect` it gets another one. In a
//! *closed loop* a place has so many messages in flight, and sends the next one when a reply has come. In an *open loop*
//! messages are due by a schedule that waits for nobody, and every place has its share of it, whether or not its
//! connection is able to send: what it owes is sent as soon as it can be, and its response time counts from when it
//! was due. Otherwise a server that stalls would be asked less just when it is slow, and would look good
//! (*coordinated omission*).
//!
//! This module does not open connections and does not know the poll; the time is what it is told, and read anew after
//! every few messages.

mod datagrams;

use std::collections::VecDeque;
use std::io::{self, ErrorKind as Io};
use std::time::{Duration, Instant};

use mio::Token;

use super::pace::Schedule;
use super::payload::{PIECE, Payload, Sizes};
use super::record::Record;
use super::summary::ErrorKind;
use crate::reactor::{CloseReason, Protocol, Stream, Transport};
pub(super) use datagrams::{LONGEST as LONGEST_DATAGRAM, NUMBER};

/// Messages for which the clock is read once. It is read at every turn of the loop too, so this bounds by how much the
/// times of messages that were handled in one long turn are off: some tens of microseconds.
const CLOCK_EVERY: u32 = 16;

/// Nanoseconds since the load generator began.
pub(super) type Nanos = u64;

/// The time, read once a turn and once in [`CLOCK_EVERY`] messages.
pub(super) struct Clock {
    epoch: Instant,
    now: Nanos,
    uses: u32,
}

impl Clock {
    fn new() -> Self {
        Clock { epoch: Instant::now(), now: 0, uses: 0 }
    }

    /// Sets the time, as at a turn's beginning.
    pub fn set(&mut self, now: Instant) {
        self.now = now.saturating_duration_since(self.epoch).as_nanos() as Nanos;
    }

    /// Reads the time anew.
    pub fn read(&mut self) -> Nanos {
        self.set(Instant::now());
        self.now
    }

    /// The time as it was last read.
    pub fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now)
    }

    /// The time, as exactly as a message's handling needs it.
    fn at_message(&mut self) -> Nanos {
        self.uses = self.uses.wrapping_add(1);
        if self.uses.is_multiple_of(CLOCK_EVERY) { self.read() } else { self.now }
    }
}

/// How a place's connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
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
struct Flight {
    /// The position in the stream at which it ends, and so does its echo; of a datagram, its number.
    end: u64,
    due: Nanos,
    sent: Nanos,
}

/// When a datagram was sent that has been answered before those that were sent before it.
const ANSWERED: Nanos = Nanos::MAX;

impl Flight {
    fn is_like(&self, other: &Flight) -> bool {
        (self.due, self.sent) == (other.due, other.sent)
    }
}

/// One of the connections that are kept up.
pub(super) struct Place {
    pub stage: Stage,
    pub token: Token,
    /// Which connection it is, counted over all that were ever opened: this tells the streams apart.
    serial: u64,
    /// Positions in the stream: what was received, what was handed to the socket, and what is to be sent.
    received: u64,
    sent: u64,
    planned: u64,
    /// Messages sent on this connection.
    begun: u64,
    flights: VecDeque<Flight>,
    /// Those of them that are answered already, which happens to datagrams alone.
    answered_early: usize,
    /// The place's messages of the schedule: the next one's number, and how many are due.
    next: u64,
    owed: u64,
    /// It has been open before.
    pub seasoned: bool,
}

impl Place {
    fn new() -> Self {
        Place {
            stage: Stage::Closed,
            token: Token(0),
            serial: 0,
            received: 0,
            sent: 0,
            planned: 0,
            begun: 0,
            flights: VecDeque::new(),
            answered_early: 0,
            next: 0,
            owed: 0,
            seasoned: false,
        }
    }

    /// Bytes that are to be sent and were not handed to the socket yet.
    fn planned_ahead(&self) -> u64 {
        self.planned - self.sent
    }

    /// Whether a message that is sent now would leave now.
    fn is_free(&self) -> bool {
        self.stage == Stage::Open && self.sent == self.planned
    }
}

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

/// What is the same for all connections.
pub(super) struct Load {
    payload: Payload,
    sizes: Sizes,
    depth: u64,
    /// Messages after which a connection is closed and opened again.
    reconnect: Option<u64>,
    pub clock: Clock,
    /// Those that carry messages, then those that are idle.
    pub places: Vec<Place>,
    pub busy: usize,
    traffic: Traffic,
    /// Messages that may still be sent.
    left: Option<u64>,
    /// The number of the next message of the schedule.
    next_due: u64,
    serials: u64,
    /// Connections that are being opened.
    pub connecting: usize,
    /// Connections that are there, idle ones included only if there are no others; those that are being closed count.
    alive: usize,
    /// Messages that are in flight, over all places.
    pub in_flight: u64,
    /// Places whose connection is gone, for their owner to open again; with whether something went wrong.
    pub gone: Vec<(u32, bool)>,
    /// The addresses that places dial, in turn, for errors to name; empty if their reader knows.
    pub addresses: Vec<String>,
    pub record: Record,
}

impl Load {
    pub fn new(seed: u64, sizes: (u64, u64), depth: u64, reconnect: Option<u64>, busy: usize, idle: usize) -> Self {
        Load {
            payload: Payload::new(seed),
            sizes: Sizes::new(sizes.0, sizes.1, seed),
            depth,
            reconnect,
            clock: Clock::new(),
            places: (0..busy + idle).map(|_| Place::new()).collect(),
            busy,
            traffic: Traffic::Off,
            left: None,
            next_due: 0,
            serials: 0,
            connecting: 0,
            alive: 0,
            in_flight: 0,
            gone: Vec::new(),
            addresses: Vec::new(),
            record: Record::new(),
        }
    }

    /// A place gets a new connection, which is being opened.
    pub fn connecting(&mut self, index: u32, token: Token) {
        let since = self.clock.read();
        let serial = self.serials;
        self.serials += 1;
        let place = &mut self.places[index as usize];
        let flights = std::mem::take(&mut place.flights);
        let (next, owed, seasoned) = (place.next, place.owed, place.seasoned);
        *place = Place { token, serial, flights, next, owed, seasoned, ..Place::new() };
        self.set_stage(index as usize, Stage::Connecting { since });
    }

    /// Changes how a place's connection is. Returns how it was.
    fn set_stage(&mut self, index: usize, stage: Stage) -> Stage {
        let counts = self.busy == 0 || index < self.busy;
        let before = std::mem::replace(&mut self.places[index].stage, stage);
        self.connecting -= usize::from(matches!(before, Stage::Connecting { .. }));
        self.connecting += usize::from(matches!(stage, Stage::Connecting { .. }));
        let is_alive = |stage| counts && matches!(stage, Stage::Open | Stage::Closing);
        self.alive += usize::from(is_alive(stage));
        self.alive -= usize::from(is_alive(before));
        before
    }

    /// Whether there is any connection that the run is about.
    pub fn is_alive(&self) -> bool {
        self.alive > 0
    }

    /// Begins to send. In a closed loop the places must be fed once, to get them going.
    pub fn start(&mut self, traffic: Traffic) {
        self.traffic = traffic;
        self.left = None;
        self.next_due = 0;
        for place in &mut self.places {
            place.next = 0;
            place.owed = 0;
        }
    }

    /// Sends so many messages more, and no others.
    pub fn limit(&mut self, messages: Option<u64>) {
        self.left = messages;
    }

    /// Whether messages are being sent.
    pub fn is_sending(&self) -> bool {
        !matches!(self.traffic, Traffic::Off)
    }

    /// Whether all messages that there were to send have been answered.
    pub fn is_exhausted(&self) -> bool {
        // What a place owes that will not have a connection any more is not waited for.
        let hopeless = |place: &Place| place.stage == Stage::Closed && self.reconnect.is_none();
        let owed =
            || self.places[..self.busy].iter().filter(|place| !hopeless(place)).map(|place| place.owed).sum::<u64>();
        self.left == Some(0) && self.in_flight == 0 && owed() == 0
    }

    /// Begins no more messages. Returns how many were due and not sent.
    pub fn stop(&mut self) -> u64 {
        self.traffic = Traffic::Off;
        self.owed()
    }

    fn owed(&self) -> u64 {
        self.places[..self.busy].iter().map(|place| place.owed).sum()
    }

    /// When the next message of the schedule is due.
    pub fn next_due(&self) -> Option<Nanos> {
        match self.traffic {
            Traffic::Open(schedule) if self.left != Some(0) => Some(schedule.due(self.next_due)),
            _ => None,
        }
    }

    /// Takes the next message of the schedule, if it is due before `now`. Returns the place that owes it.
    pub fn take_due(&mut self, now: Nanos) -> Option<u32> {
        let due = self.next_due().filter(|&due| due <= now)?;
        let index = self.next_due % self.busy as u64;
        self.next_due += 1;
        self.left = self.left.map(|left| left - 1);
        let place = &mut self.places[index as usize];
        place.owed += 1;
        if place.is_free() && place.owed == 1 {
            self.record.on_time(due, now);
        }
        Some(index as u32)
    }

    /// Gives up the connections on which a connect or a reply takes longer than `timeout`, and returns their tokens,
    /// for their owner to close.
    pub fn expire(&mut self, timeout: Duration) -> Vec<Token> {
        let now = self.clock.read();
        let overdue = |since: Nanos| now.saturating_sub(since) > timeout.as_nanos() as Nanos;
        let mut tokens = Vec::new();
        for index in 0..self.places.len() {
            let place = &self.places[index];
            match (place.stage, place.flights.front()) {
                (Stage::Connecting { since }, _) if overdue(since) => {
                    self.fail(index, ErrorKind::ConnectTimeout, format!("no connection within {timeout:?}"));
                }
                (Stage::Open, Some(oldest)) if overdue(oldest.sent) => {
                    let text = format!(
                        "connection {}: {} of {} bytes came back within {timeout:?}",
                        place.serial, place.received, place.planned
                    );
                    self.fail(index, ErrorKind::ReplyTimeout, text);
                }
                _ => continue,
            }
            tokens.push(self.places[index].token);
        }
        tokens
    }

    /// Connections that carry messages, and are there.
    pub fn open(&self) -> u64 {
        self.places[..self.busy].iter().filter(|place| place.stage == Stage::Open).count() as u64
    }

    /// Idle connections that are there.
    pub fn open_idle(&self) -> u64 {
        self.places[self.busy..].iter().filter(|place| place.stage == Stage::Open).count() as u64
    }

    /// Whether a place may begin another message; and when that was due, if it was by a schedule.
    fn may_begin(&self, index: u32) -> Option<Option<Nanos>> {
        let place = &self.places[index as usize];
        if self.reconnect.is_some_and(|limit| place.begun >= limit) {
            return None;
        }
        let unanswered = (place.flights.len() - place.answered_early) as u64;
        match self.traffic {
            Traffic::Off => None,
            Traffic::Closed if unanswered >= self.depth || self.left == Some(0) => None,
            Traffic::Closed => Some(None),
            Traffic::Open(_) if place.owed == 0 => None,
            Traffic::Open(schedule) => Some(Some(schedule.due(u64::from(index) + place.next * self.busy as u64))),
        }
    }

    /// Notes that a place begins a message, which [may](Load::may_begin) be and was due then.
    fn begin(&mut self, index: u32, end: u64, due: Option<Nanos>, sent: Nanos) {
        let place = &mut self.places[index as usize];
        if due.is_some() {
            place.next += 1;
            place.owed -= 1;
        } else {
            self.left = self.left.map(|left| left - 1);
        }
        let due = due.unwrap_or(sent);
        place.begun += 1;
        place.flights.push_back(Flight { end, due, sent });
        self.in_flight += 1;
        self.record.sent(due);
    }

    /// Sends what a place is to send now.
    pub fn feed<S: Stream>(&mut self, transport: &mut Transport<'_, S>, index: u32) {
        if self.places[index as usize].stage != Stage::Open {
            return;
        }
        let sent = self.clock.at_message();
        loop {
            while self.places[index as usize].planned_ahead() < PIECE as u64
                && let Some(due) = self.may_begin(index)
            {
                let place = &mut self.places[index as usize];
                place.planned += self.sizes.of(place.serial, place.begun);
                let end = place.planned;
                self.begin(index, end, due, sent);
            }
            let place = &mut self.places[index as usize];
            if place.sent == place.planned {
                return;
            }
            // Piece by piece from the pattern, so that what waits for WRITABLE is one piece at most.
            while place.sent < place.planned && transport.waiting() == 0 {
                let piece = self.payload.piece(place.serial, place.sent, place.planned - place.sent);
                transport.write(piece);
                place.sent += piece.len() as u64;
            }
            if place.sent < place.planned || transport.waiting() > 0 {
                return;
            }
        }
    }

    /// Takes note of the messages that are answered whole by what a place has received.
    fn answer(&mut self, index: usize) {
        let now = self.clock.at_message();
        let place = &mut self.places[index];
        // Messages that were sent together have the same times, and are recorded together.
        while let Some(&first) = place.flights.front().filter(|flight| flight.end <= place.received) {
            let alike = |flight: &&Flight| flight.end <= place.received && flight.is_like(&first);
            let count = place.flights.iter().take_while(alike).count();
            place.flights.drain(..count);
            self.in_flight -= count as u64;
            self.record.replies(count as u64, first.due, first.sent, now);
        }
    }

    /// Notes that something went wrong with a place's connection, which is over with that.
    fn fail(&mut self, index: usize, kind: ErrorKind, text: String) {
        let addresses = &self.addresses;
        self.record.error(kind, || match addresses.get(index % addresses.len().max(1)) {
            Some(address) => format!("{address}: {text}"),
            None => text,
        });
        self.set_stage(index, Stage::Failed);
        let place = &mut self.places[index];
        self.in_flight -= (place.flights.len() - place.answered_early) as u64;
        place.answered_early = 0;
        for flight in place.flights.drain(..).filter(|flight| flight.sent != ANSWERED) {
            self.record.unanswered(flight.due);
        }
    }

    /// Looks closer at bytes that are not what was sent.
    fn mismatch(&mut self, index: usize, got: &[u8]) {
        let place = &self.places[index];
        let in_flight = self.places.iter().filter(|other| other.stage == Stage::Open);
        let in_flight = in_flight.map(|other| (other.serial, other.received, other.sent));
        let mismatch = self.payload.explain(place.serial, place.received, got, in_flight);
        let text = mismatch.to_string();
        self.record.mismatch(mismatch);
        self.fail(index, ErrorKind::Mismatch, text);
    }
}

impl<S: Stream> Protocol<S> for Load {
    /// The number of the connection's place.
    type State = u32;

    /// The server may refuse to read while it cannot send, so what it sends must be read in any case.
    const FULL_DUPLEX: bool = true;

    fn opened(&mut self, transport: &mut Transport<'_, S>, &mut index: &mut u32) {
        let now = self.clock.read();
        let place = &mut self.places[index as usize];
        if let Stage::Connecting { since } = place.stage {
            self.record.connected(now - since, place.seasoned);
            place.seasoned = true;
            self.set_stage(index as usize, Stage::Open);
            self.feed(transport, index);
        }
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, &mut index: &mut u32, bytes: &[u8]) {
        let place = &mut self.places[index as usize];
        if place.stage != Stage::Open {
            return;
        }
        let owed = place.sent - place.received;
        let (echo, excess) = bytes.split_at(bytes.len().min(usize::try_from(owed).unwrap_or(usize::MAX)));
        let right = self.payload.matching(place.serial, place.received, echo);
        place.received += right as u64;
        self.record.bytes(right as u64);
        self.answer(index as usize);
        let place = &mut self.places[index as usize];
        if right < echo.len() {
            self.mismatch(index as usize, &echo[right..]);
            transport.close();
        } else if !excess.is_empty() {
            let text = format!("connection {}: {} bytes more than were sent", place.serial, excess.len());
            self.fail(index as usize, ErrorKind::Excess, text);
            transport.close();
        } else if self.reconnect.is_some_and(|limit| place.begun >= limit) && place.flights.is_empty() {
            self.set_stage(index as usize, Stage::Closing);
            transport.close();
        } else {
            self.feed(transport, index);
        }
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, &mut index: &mut u32) {
        self.feed(transport, index);
    }

    fn eof(&mut self, transport: &mut Transport<'_, S>, &mut index: &mut u32) {
        let place = &self.places[index as usize];
        if place.stage == Stage::Open {
            let missing = place.planned - place.received;
            let text = format!("connection {}: closed by the server with {missing} bytes owed", place.serial);
            self.fail(index as usize, ErrorKind::ClosedEarly, text);
        }
        transport.close();
    }

    fn closed(&mut self, _: Token, index: u32, reason: &CloseReason) {
        let index = index as usize;
        let place = &self.places[index];
        match (place.stage, reason) {
            (Stage::Connecting { .. }, CloseReason::Failed(error)) => {
                self.fail(index, connect_kind(error), error.to_string())
            }
            (Stage::Open, CloseReason::Failed(error)) => {
                let kind = match error.kind() {
                    Io::ConnectionReset | Io::BrokenPipe | Io::ConnectionAborted => ErrorKind::Reset,
                    _ => ErrorKind::Failed,
                };
                let text = format!("connection {}: {error}", place.serial);
                self.fail(index, kind, text);
            }
            _ => {}
        }
        let stage = self.set_stage(index, Stage::Closed);
        self.gone.push((index as u32, stage != Stage::Closing));
    }
}

/// What it is called when a connection cannot be opened.
pub(super) fn connect_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        Io::ConnectionRefused => ErrorKind::Refused,
        Io::TimedOut => ErrorKind::ConnectTimeout,
        _ => ErrorKind::ConnectFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{Read, Write};
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::reactor::{Reactor, Readiness, Settings, Source};

    /// A socket whose other end echoes, and that takes and gives as few bytes as its script says.
    #[derive(Clone, Default)]
    struct Echoing(Rc<RefCell<Wire>>);

    #[derive(Default)]
    struct Wire {
        on_its_way: VecDeque<u8>,
        /// What each call does: 0 would block, 1 is interrupted, more are bytes. It begins again at its end.
        script: Vec<usize>,
        at: usize,
        ended: bool,
    }

    impl Wire {
        fn allowed(&mut self) -> io::Result<usize> {
            let answer = self.script[self.at % self.script.len()];
            self.at += 1;
            match answer {
                0 => Err(Io::WouldBlock.into()),
                1 => Err(Io::Interrupted.into()),
                bytes => Ok(bytes),
            }
        }
    }

    impl Read for Echoing {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let mut wire = self.0.borrow_mut();
            if wire.on_its_way.is_empty() && !wire.ended {
                return Err(Io::WouldBlock.into());
            }
            let count = wire.allowed()?.min(into.len());
            wire.on_its_way.read(&mut into[..count])
        }
    }

    impl Write for Echoing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut wire = self.0.borrow_mut();
            let count = wire.allowed()?.min(bytes.len());
            wire.on_its_way.write(&bytes[..count])
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Stream for Echoing {
        fn shutdown_write(&mut self) -> io::Result<()> {
            self.0.borrow_mut().ended = true;
            Ok(())
        }
        fn established(&mut self) -> io::Result<bool> {
            Ok(true)
        }
    }

    fn world(script: &[usize], sizes: (u64, u64), depth: u64) -> (Reactor<Echoing, Load>, Echoing) {
        let socket = Echoing::default();
        socket.0.borrow_mut().script = script.to_vec();
        let settings = Settings::default();
        let mut reactor = Reactor::new(Load::new(7, sizes, depth, None, 1, 0), settings);
        let connected = reactor.connect(|token, load| {
            load.connecting(0, token);
            Ok((socket.clone(), 0))
        });
        let token = connected.unwrap();
        reactor.turn_with(Instant::now(), [everything(token)]);
        (reactor, socket)
    }

    fn everything(token: Token) -> Readiness {
        Readiness { token, readable: true, writable: true, read_closed: false, urgent: false }
    }

    fn feed(reactor: &mut Reactor<Echoing, Load>) {
        let token = reactor.protocol().places[0].token;
        reactor.with(token, |load, transport, _| load.feed(transport, 0));
    }

    proptest! {
        #[test]
        fn any_interleaving_is_verified_and_counted_once(
            mut script in prop::collection::vec(prop_oneof![Just(0usize), Just(1), 2usize..200, Just(100_000)], 1..40),
            largest in prop_oneof![Just(1u64), Just(64), Just(1000), Just(100_000)],
            depth in 1u64..20,
        ) {
            script.push(50_000); // so that it goes on some time
            let (mut reactor, _) = world(&script, (1, largest), depth);
            let load = reactor.protocol_mut();
            load.start(Traffic::Closed);
            let now = load.clock.read();
            load.record.open_window(now, false);
            load.limit(Some(50));
            feed(&mut reactor);
            let mut turns = 0;
            while !reactor.protocol().is_exhausted() {
                let token = reactor.protocol().places[0].token;
                reactor.turn_with(Instant::now(), [everything(token)]);
                turns += 1;
                prop_assert!(turns < 1_000_000, "it got stuck");
                prop_assert!(reactor.counters().waiting_bytes <= PIECE as u64, "one piece at most waits for WRITABLE");
                prop_assert!(reactor.protocol().in_flight <= depth);
            }
            let load = reactor.protocol_mut();
            prop_assert_eq!(load.record.error_count(), 0, "{:?}", load.record.errors);
            let now = load.clock.read();
            load.record.close_window(now, 0);
            let window = load.record.take_window(1).unwrap();
            prop_assert_eq!((window.messages.sent, window.messages.replies, window.response.len()), (50, 50, 50));
        }

        #[test]
        fn any_byte_that_is_changed_is_found(at in 0usize..6400, flip in 1u8..=255) {
            let (mut reactor, socket) = world(&[100_000], (64, 64), 100);
            let load = reactor.protocol_mut();
            load.start(Traffic::Closed);
            load.limit(Some(100));
            feed(&mut reactor);
            socket.0.borrow_mut().on_its_way[at] ^= flip;
            let token = reactor.protocol().places[0].token;
            reactor.turn_with(Instant::now(), [everything(token)]);
            let record = &reactor.protocol().record;
            prop_assert_eq!(record.errors.keys().collect::<Vec<_>>(), [&ErrorKind::Mismatch]);
            prop_assert_eq!(record.mismatches[0].offset, at as u64);
        }
    }

    #[test]
    fn sending_and_verifying_allocates_nothing() {
        let (mut reactor, _) = world(&[100_000], (64, 64), 4);
        let load = reactor.protocol_mut();
        load.start(Traffic::Closed);
        let now = load.clock.read();
        load.record.open_window(now, false);
        feed(&mut reactor);
        let token = reactor.protocol().places[0].token;
        for turn in 0..100 {
            let allocated = allocation_counter::measure(|| reactor.turn_with(Instant::now(), [everything(token)]));
            // The first turns make room in the loop's own lists, and in the scripted peer.
            assert!(turn < 2 || allocated.count_total == 0, "turn {turn}: {allocated:?}");
        }
        assert!(reactor.protocol().record.window().unwrap().messages.replies >= 400);
    }
}
