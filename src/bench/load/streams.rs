//! The load over streams: a protocol on the reactor.

use std::io::{self, ErrorKind as Io};

use log::debug;
use mio::Token;

use super::backends::{Heard, MAX_GREETING};
use super::slot::{Flight, Stage};
use super::{Load, Outcome};
use crate::bench::clock::Nanos;
use crate::bench::latency::{micros, show_micros};
use crate::bench::payload::{Cause, PIECE};
use crate::bench::summary::ErrorKind;
use crate::count::counted;
use crate::reactor::{CloseReason, Protocol, Stream, Transport};

/// What is asked where bytes come first that are no echo.
const GREETS: &str = " (does the server greet? --by-greeting)";

/// What is remembered about a connection.
#[derive(Debug)]
pub(in crate::bench) struct Peer {
    /// The number of its slot.
    slot: u32,
    /// Since when it is being closed, if it is: its slot may have another connection already.
    closing: Option<Nanos>,
    /// Its server has closed its side.
    ended: bool,
}

impl Peer {
    pub fn of(slot: u32) -> Self {
        Peer { slot, closing: None, ended: false }
    }
}

impl Load {
    /// Sends what a slot is to send now.
    pub fn feed<S: Stream>(&mut self, transport: &mut Transport<'_, S>, index: u32) {
        if self.slots[index as usize].stage != Stage::Open {
            return;
        }
        let mut now = None;
        loop {
            // While bytes wait, a message that is begun would wait behind them.
            while transport.waiting() == 0
                && self.slots[index as usize].planned_ahead() < PIECE as u64
                && let Some(due) = self.may_begin(index)
            {
                let sent = *now.get_or_insert_with(|| self.clock.read());
                let slot = &mut self.slots[index as usize];
                slot.planned += self.sizes.of(slot.serial, slot.begun);
                let end = slot.planned;
                self.begin(index, end, due, sent);
            }
            let slot = &mut self.slots[index as usize];
            // Piece by piece from the pattern, so that what waits for WRITABLE is one piece at most.
            while slot.sent < slot.planned && transport.waiting() == 0 {
                let piece = self.payload.piece(slot.serial, slot.sent, slot.planned - slot.sent);
                transport.write(piece);
                slot.sent += piece.len() as u64;
            }
            let all = slot.sent == slot.planned && transport.waiting() == 0;
            if !all || self.may_begin(index).is_none() {
                let free = all && !self.is_spent(index);
                if free != self.slots[index as usize].is_free() {
                    let now = self.clock.read();
                    self.slots[index as usize].set_free(free, now);
                }
                return;
            }
            now = None;
        }
    }

    /// Takes note of the messages that are answered whole by what a slot has received at `now`.
    fn answer(&mut self, index: usize, now: Nanos) {
        loop {
            let slot = &mut self.slots[index];
            let Some(&first) = slot.flights.front().filter(|flight| flight.end <= slot.received) else { return };
            // Messages that were sent together have the same times, and are recorded together.
            let alike = |flight: &&Flight| flight.end <= slot.received && flight.is_like(&first);
            let count = slot.flights.iter().take_while(alike).count();
            let end = slot.flights[count - 1].end;
            slot.flights.drain(..count);
            let bytes = end - slot.answered;
            slot.answered = end;
            self.in_flight -= count as u64;
            self.alive += usize::from(!std::mem::replace(&mut slot.proven, true));
            self.answered(count as u64, bytes, first, now, index);
        }
    }

    /// Looks closer at bytes that are not what was sent.
    fn mismatch(&mut self, index: usize, got: &[u8]) {
        let slot = &self.slots[index];
        let in_flight = self.slots.iter().filter(|other| other.stage == Stage::Open);
        let in_flight = in_flight.map(|other| (other.serial, other.received, other.sent));
        let mismatch = self.payload.explain(slot.serial, slot.received, got, in_flight);
        let hint = if slot.received == 0 && mismatch.cause == Cause::Unknown { GREETS } else { "" };
        let text = format!("{mismatch}{hint}");
        self.record.mismatch(mismatch);
        self.fail(index, ErrorKind::Mismatch, text, Outcome::Failed);
    }

    /// Takes in the line that tells which backend a connection leads to, with which the connection is open. Returns what
    /// came behind it, once it has come.
    #[cold]
    fn greeted<'a, S: Stream>(
        &mut self,
        transport: &mut Transport<'_, S>,
        index: u32,
        bytes: &'a [u8],
    ) -> Option<&'a [u8]> {
        match self.backends.as_mut()?.take(index, bytes) {
            Heard::Unfinished => None,
            Heard::Endless => {
                let text = format!(
                    "connection {}: {MAX_GREETING} bytes without a newline are no greeting (--by-greeting)",
                    self.slots[index as usize].serial
                );
                self.fail(index as usize, ErrorKind::Excess, text, Outcome::Failed);
                transport.abort();
                None
            }
            Heard::Of(backend, rest) => {
                self.slots[index as usize].backend = backend;
                let now = self.clock.read();
                self.is_open(index, now);
                Some(rest)
            }
        }
    }

    /// Has a connection closed whose messages have all been answered. Its slot gets another one at once, as long as those
    /// that are being closed are not too many.
    fn close_answered<S: Stream>(&mut self, transport: &mut Transport<'_, S>, peer: &mut Peer, now: Nanos) {
        peer.closing = Some(now);
        transport.close();
        if self.closing < self.max_closing {
            self.closing += 1;
            self.set_stage(peer.slot as usize, Stage::Closed);
            self.slots[peer.slot as usize].token = NOBODY;
            self.gone.push((peer.slot, false));
        } else {
            self.set_stage(peer.slot as usize, Stage::Closing);
        }
    }
}

/// The token of a slot whose connection has been left to itself.
const NOBODY: Token = Token(usize::MAX);

impl<S: Stream> Protocol<S> for Load {
    type State = Peer;

    /// The server may refuse to read while it cannot send, so what it sends must be read in any case.
    const FULL_DUPLEX: bool = true;

    fn opened(&mut self, transport: &mut Transport<'_, S>, peer: &mut Peer) {
        let now = self.clock.read();
        if let Stage::Connecting { since } = self.slots[peer.slot as usize].stage {
            match &mut self.backends {
                // It counts as open when it is known who is there.
                Some(backends) => backends.await_greeting(peer.slot),
                None => self.is_open(peer.slot, now),
            }
            let slot = &mut self.slots[peer.slot as usize];
            let (took, again) = (now.saturating_sub(since), std::mem::replace(&mut slot.seasoned, true));
            let purpose = if again { ", in place of another" } else { "" };
            debug!("connection {}: open after {}{purpose}", slot.serial, show_micros(micros(took)));
            self.record.connected(took, again);
            self.feed(transport, peer.slot);
        }
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, peer: &mut Peer, bytes: &[u8]) {
        let index = peer.slot as usize;
        if peer.closing.is_some() {
            return;
        }
        let bytes = match self.slots[index].stage {
            Stage::Open => bytes,
            _ => match self.greeted(transport, peer.slot, bytes) {
                Some(rest) => rest,
                None => return,
            },
        };
        let slot = &mut self.slots[index];
        let now = self.clock.read();
        let owed = slot.sent - slot.received;
        let (echo, excess) = bytes.split_at(bytes.len().min(usize::try_from(owed).unwrap_or(usize::MAX)));
        let right = self.payload.matching(slot.serial, slot.received, echo);
        slot.received += right as u64;
        self.answer(index, now);
        let slot = &mut self.slots[index];
        if right < echo.len() {
            self.mismatch(index, &echo[right..]);
            transport.abort();
        } else if !excess.is_empty() {
            let hint = if slot.sent == 0 { GREETS } else { "" };
            let text = format!("connection {}: {} more than sent{hint}", slot.serial, counted(excess.len(), "byte"));
            self.fail(index, ErrorKind::Excess, text, Outcome::Failed);
            transport.abort();
        } else if slot.flights.is_empty() && self.is_spent(peer.slot) {
            self.close_answered(transport, peer, now);
        } else {
            self.feed(transport, peer.slot);
        }
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, peer: &mut Peer) {
        if peer.closing.is_none() {
            self.feed(transport, peer.slot);
        }
    }

    fn eof(&mut self, transport: &mut Transport<'_, S>, peer: &mut Peer) {
        peer.ended = true;
        let slot = &self.slots[peer.slot as usize];
        if peer.closing.is_some() {
            // Its slot may have another connection already.
        } else if self.backends.as_ref().is_some_and(|backends| backends.awaits(peer.slot)) {
            let text = format!("connection {}: closed by the server before its greeting", slot.serial);
            self.fail(peer.slot as usize, ErrorKind::ClosedEarly, text, Outcome::Failed);
        } else if slot.stage == Stage::Open {
            let missing = counted(slot.planned - slot.received, "byte");
            let text = format!("connection {}: closed by the server with {missing} owed", slot.serial);
            self.fail(peer.slot as usize, ErrorKind::ClosedEarly, text, Outcome::Failed);
        }
        transport.close();
    }

    fn closed(&mut self, token: Token, peer: Peer, reason: &CloseReason) {
        if let Some(since) = peer.closing {
            // A reset ends it too, and is no answer to the question how long a close takes.
            let now = self.clock.read();
            self.record.closed(now.saturating_sub(since), peer.ended);
        }
        let index = peer.slot as usize;
        if self.slots[index].token != token {
            self.closing -= 1;
            return;
        }
        let slot = &self.slots[index];
        debug!("connection {}: closed: {reason}", slot.serial);
        match (slot.stage, reason) {
            (Stage::Connecting { .. }, CloseReason::Failed(error)) => {
                self.fail(index, connect_kind(error), error.to_string(), Outcome::Failed);
            }
            (Stage::Open, CloseReason::Failed(error)) => {
                let kind = match error.kind() {
                    Io::ConnectionReset | Io::BrokenPipe | Io::ConnectionAborted => ErrorKind::Reset,
                    _ => ErrorKind::Failed,
                };
                let text = format!("connection {}: {error}", slot.serial);
                self.fail(index, kind, text, Outcome::Failed);
            }
            _ => {}
        }
        let stage = self.set_stage(index, Stage::Closed);
        self.gone.push((peer.slot, stage != Stage::Closing));
    }
}

/// What it is called when a connection cannot be opened.
pub(in crate::bench) fn connect_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        Io::ConnectionRefused => ErrorKind::Refused,
        Io::TimedOut => ErrorKind::ConnectTimeout,
        _ => ErrorKind::ConnectFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io::{Read, Write};
    use std::rc::Rc;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::bench::clock::Clock;
    use crate::bench::load::{Shape, Traffic};
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
        let load = Load::new(&Shape::single(sizes, depth), Clock::new(Instant::now));
        let mut reactor = Reactor::new(load, settings);
        let connected = reactor.connect(|token, load| {
            load.connecting(0, token, 0);
            Ok((socket.clone(), Peer::of(0)))
        });
        let token = connected.unwrap();
        reactor.turn_with(Instant::now(), [everything(token)]);
        (reactor, socket)
    }

    fn everything(token: Token) -> Readiness {
        Readiness { token, readable: true, writable: true, read_closed: false, urgent: false }
    }

    fn feed(reactor: &mut Reactor<Echoing, Load>) {
        let token = reactor.protocol().slots[0].token;
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
            load.open_window(now, None, Some(50));
            feed(&mut reactor);
            let mut turns = 0;
            while !reactor.protocol().is_exhausted() {
                let token = reactor.protocol().slots[0].token;
                reactor.turn_with(Instant::now(), [everything(token)]);
                turns += 1;
                prop_assert!(turns < 1_000_000, "it got stuck");
                prop_assert!(reactor.counters().waiting_bytes <= PIECE as u64, "one piece at most waits for WRITABLE");
                prop_assert!(reactor.protocol().in_flight <= depth);
            }
            let load = reactor.protocol_mut();
            prop_assert_eq!(load.record.error_count(), 0, "{:?}", load.record.errors);
            let now = load.clock.read();
            load.close_window(now);
            load.settle(now, false);
            let (ledger, _) = load.record.take(1).unwrap();
            prop_assert_eq!((ledger.outcomes.due, ledger.outcomes.answered, ledger.response().len()), (50, 50, 50));
        }

        #[test]
        fn any_byte_that_is_changed_is_found(at in 0usize..6400, flip in 1u8..=255) {
            let (mut reactor, socket) = world(&[100_000], (64, 64), 100);
            let load = reactor.protocol_mut();
            load.start(Traffic::Closed);
            load.open_window(0, None, Some(100));
            feed(&mut reactor);
            socket.0.borrow_mut().on_its_way[at] ^= flip;
            let token = reactor.protocol().slots[0].token;
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
        load.open_window(now, None, None);
        feed(&mut reactor);
        let token = reactor.protocol().slots[0].token;
        for turn in 0..100 {
            let allocated = allocation_counter::measure(|| reactor.turn_with(Instant::now(), [everything(token)]));
            // The first turns make room in the loop's own lists, and in the scripted peer.
            assert!(turn < 2 || allocated.count_total == 0, "turn {turn}: {allocated:?}");
        }
        assert!(reactor.protocol().record.ledger().unwrap().outcomes.answered >= 400);
    }
}
