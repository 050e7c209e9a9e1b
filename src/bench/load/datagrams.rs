//! The load over datagrams: each message is one, and carries its number, for it may be lost, come late, or come twice.
//!
//! A socket that is connected to the server takes the part of a connection. Nothing is sent again: what has not come back
//! in time is lost, and counted. The contents are verified as everything is.

use std::io::{self, ErrorKind as Io};
use std::net::SocketAddr;

use mio::Token;

use super::slot::{ANSWERED, Flight, Slot, Stage};
use super::{Load, Nanos, Outcome, UNKNOWN};
use crate::bench::payload::{Cause, Mismatch, Payload, hex};
use crate::bench::summary::ErrorKind;
use crate::reactor::{DatagramProtocol, DatagramSocket, Envelope, Outlet, Sent};

/// The bytes in which a datagram carries its number, big-endian, mixed with its socket's own
/// [mark](crate::bench::payload::Payload::mark) so that no two sockets' are alike.
pub(in crate::bench) const NUMBER: usize = 8;

/// The longest datagram over IPv4 (RFC 768, RFC 791).
pub(in crate::bench) const MAX_DATAGRAM: usize = 65_507;

/// Datagrams sent at one socket before the others have their turn: a socket whose receiver is full takes any number, and
/// drops them.
const SEND_BUDGET: usize = 16;

/// How far apart in the pattern successive datagrams begin. Any number that does not divide its period will do.
const STRIDE: u64 = 7919;

/// A slot's socket.
#[derive(Clone, Copy)]
pub(super) struct Port {
    slot: u32,
    to: Envelope,
}

/// Sends once more if the error is about a datagram that was sent before: the system tells it at the next call, and that
/// call does nothing else (udp(7)).
fn send<D: DatagramSocket>(
    outlet: &mut Outlet<'_, D>,
    bytes: &[u8],
    to: &Envelope,
    tell: impl FnOnce(&io::Error),
) -> Sent {
    match outlet.send(bytes, to) {
        Sent::Failed(error) if error.kind() == Io::ConnectionRefused => {
            tell(&error);
            outlet.send(bytes, to)
        }
        sent => sent,
    }
}

/// The contents of a socket's datagram after its number.
fn contents(payload: &Payload, serial: u64, number: u64, size: u64) -> &[u8] {
    payload.piece(serial, number * STRIDE, size - NUMBER as u64)
}

impl Load {
    /// A slot gets the socket of `outlet`, which is there at once, and sends to `target`.
    pub fn open_port<D: DatagramSocket>(&mut self, index: u32, target: SocketAddr, outlet: &mut Outlet<'_, D>) {
        let now = self.clock.read();
        // Sockets are never removed, so their tokens are consecutive.
        debug_assert_eq!(outlet.token(), Token(self.ports.len()));
        self.ports.push(Port { slot: index, to: Envelope::from(target) });
        if self.datagram.is_empty() {
            self.datagram = vec![0; MAX_DATAGRAM].into_boxed_slice();
        }
        self.connecting(index, outlet.token(), now);
        self.is_open(index, now);
        self.feed_port(outlet);
    }

    /// Sends the datagrams that a slot is to send now over its socket.
    pub fn feed_port<D: DatagramSocket>(&mut self, outlet: &mut Outlet<'_, D>) {
        let Port { slot: index, to } = self.ports[outlet.token().0];
        if self.slots[index as usize].stage != Stage::Open {
            return;
        }
        let mut budget = SEND_BUDGET;
        while let Some(due) = self.may_begin(index) {
            if budget == 0 {
                return outlet.go_on();
            }
            budget -= 1;
            let Slot { serial, begun: number, .. } = self.slots[index as usize];
            let size = self.sizes.of(serial, number);
            let wire = self.wire(serial, number);
            let datagram = &mut self.datagram[..size as usize];
            datagram[..NUMBER].copy_from_slice(&wire);
            datagram[NUMBER..].copy_from_slice(contents(&self.payload, serial, number, size));
            let now = self.clock.read();
            let record = &mut self.record;
            match send(outlet, datagram, &to, |error| {
                record.error(ErrorKind::Unreachable, index as usize, || refusal(serial, error))
            }) {
                Sent::Taken => self.begin(index, number, due, now),
                // It is still to be sent, and will be when the socket is writable.
                Sent::NoRoom => {
                    self.slots[index as usize].set_free(false, now);
                    return;
                }
                Sent::Failed(error) => {
                    self.begin(index, number, due, now);
                    self.never_left(index, &error, now);
                }
            }
        }
        let slot = &mut self.slots[index as usize];
        if !slot.is_free() {
            let now = self.clock.read();
            slot.set_free(true, now);
        }
    }

    /// The bytes in which a socket's datagram carries its number.
    fn wire(&self, serial: u64, number: u64) -> [u8; NUMBER] {
        scatter(number ^ self.payload.mark(serial)).to_be_bytes()
    }

    /// The datagram that was begun last could not be sent.
    fn never_left(&mut self, index: u32, error: &io::Error, now: Nanos) {
        let slot = &mut self.slots[index as usize];
        let Some(flight) = slot.flights.pop_back() else { return };
        // Its number stays used: no reply will ever carry it.
        slot.flights.push_back(Flight { sent: ANSWERED, ..flight });
        slot.answered_early += 1;
        self.in_flight -= 1;
        let serial = slot.serial;
        slot.forget_answered();
        self.record.error(ErrorKind::Unreachable, index as usize, || refusal(serial, error));
        self.record.lost(1, flight.due, Some(flight.sent), now, Outcome::Failed, UNKNOWN);
    }

    /// Verifies a datagram, and takes note of the message that it answers.
    fn datagram(&mut self, index: usize, bytes: &[u8]) {
        let now = self.clock.read();
        let slot = &self.slots[index];
        let serial = slot.serial;
        let number = bytes.first_chunk().map(|wire| gather(u64::from_be_bytes(*wire)) ^ self.payload.mark(serial));
        let Some(number) = number.filter(|number| *number < slot.begun) else {
            return self.strange(index, bytes);
        };
        let size = self.sizes.of(serial, number);
        let expected = contents(&self.payload, serial, number, size);
        let got = &bytes[NUMBER..];
        if got != expected {
            let same = expected.iter().zip(got).take_while(|(expected, got)| expected == got).count();
            let all = (size as usize).min(bytes.len()) == NUMBER + same;
            let length = Cause::Length { expected: size, got: bytes.len() as u64 };
            return self.wrong(
                index,
                Mismatch {
                    connection: serial,
                    datagram: Some(number),
                    offset: (NUMBER + same) as u64,
                    expected: hex(&expected[same..]),
                    got: hex(&got[same..]),
                    cause: if all || bytes.len() as u64 != size { length } else { Cause::Altered },
                },
            );
        }
        let first = slot.flights.front().map_or(slot.begun, |flight| flight.end);
        let flight = number.checked_sub(first).map(|at| slot.flights[at as usize]);
        let Some(flight) = flight.filter(|flight| flight.sent != ANSWERED) else {
            // It was answered, or given up.
            return self.record.duplicate();
        };
        let slot = &mut self.slots[index];
        if number < slot.received {
            self.record.reordered();
        }
        slot.received = slot.received.max(number);
        slot.flights[(number - first) as usize].sent = ANSWERED;
        slot.answered_early += 1;
        slot.forget_answered();
        self.in_flight -= 1;
        self.answered(1, size, flight, now, index);
    }

    /// Notes a datagram with a number that none has that was sent by this socket.
    fn strange(&mut self, index: usize, bytes: &[u8]) {
        let (number, got) = bytes.split_at(bytes.len().min(NUMBER));
        let slot = &self.slots[index];
        let serial = slot.serial;
        let is = |serial: u64, number: u64| {
            let size = self.sizes.of(serial, number);
            size == bytes.len() as u64 && contents(&self.payload, serial, number, size) == got
        };
        // Another socket's, or one of this one's with another number.
        let numbered = <[u8; NUMBER]>::try_from(number).map(|wire| gather(u64::from_be_bytes(wire))).ok();
        let foreign = numbered.and_then(|marked| {
            let sent = |other: &&Slot| {
                let number = marked ^ self.payload.mark(other.serial);
                other.serial != serial && number < other.begun && is(other.serial, number)
            };
            let other = self.slots.iter().find(sent)?;
            Some((other.serial, marked ^ self.payload.mark(other.serial)))
        });
        // Most bytes of the number, or all that comes after it, tell which datagram of this socket it was.
        let same = |other: u64| self.wire(serial, other).iter().zip(number).filter(|(one, other)| one == other).count();
        let altered = |other: &u64| same(*other) > NUMBER / 2 || got.len() > NUMBER && is(serial, *other);
        let altered = slot.flights.iter().map(|flight| flight.end).find(altered);
        // The one that has been awaited longest is named, if it is not known which it is.
        let front = slot.flights.front().map(|flight| flight.end);
        let datagram = altered.or(front).unwrap_or(slot.begun);
        let size = self.sizes.of(serial, datagram);
        let cause = match foreign {
            Some((connection, offset)) => Cause::Foreign { connection, offset },
            None if bytes.len() < NUMBER || altered.is_some() && size != bytes.len() as u64 => {
                Cause::Length { expected: size, got: bytes.len() as u64 }
            }
            None if altered.is_some() => Cause::Altered,
            None => Cause::Unknown,
        };
        let expected = self.wire(serial, datagram);
        let at = expected.iter().zip(number).take_while(|(expected, got)| expected == got).count();
        self.wrong(
            index,
            Mismatch {
                connection: serial,
                datagram: Some(datagram),
                offset: at as u64,
                expected: hex(&expected[at..]),
                got: hex(&number[at..]),
                cause,
            },
        );
    }

    /// Notes a datagram that is none of those that were sent.
    fn wrong(&mut self, index: usize, mismatch: Mismatch) {
        self.record.error(ErrorKind::Mismatch, index, || mismatch.to_string());
        self.record.mismatch(mismatch);
    }

    /// Gives up the datagrams of a slot that have been away for too long. Returns its socket, over which
    /// others may be sent.
    pub fn expire_port(&mut self, now: Nanos) -> Option<Token> {
        let timeout = self.timeouts.timeout();
        let index = self.timeouts.take(&mut self.slots, now)?;
        let slot = &mut self.slots[index as usize];
        let is_overdue = |flight: &&Flight| now.saturating_sub(flight.sent) > timeout;
        while let Some(&flight) = slot.flights.front().filter(is_overdue) {
            slot.flights.pop_front();
            slot.forget_answered();
            self.in_flight -= 1;
            self.record.lost(1, flight.due, Some(flight.sent), now, Outcome::Unanswered, UNKNOWN);
        }
        if let Some(oldest) = slot.flights.front() {
            let since = oldest.sent;
            self.timeouts.arm(slot, index, since);
        }
        self.note_futile(now);
        Some(self.slots[index as usize].token)
    }
}

impl<D: DatagramSocket> DatagramProtocol<D> for Load {
    fn received(&mut self, outlet: &mut Outlet<'_, D>, _: &Envelope, bytes: &[u8]) {
        let index = self.ports[outlet.token().0].slot;
        self.datagram(index as usize, bytes);
    }

    /// It is about a datagram that was sent before, and says nothing about the next one.
    fn failed(&mut self, outlet: &mut Outlet<'_, D>, error: io::Error) {
        let index = self.ports[outlet.token().0].slot as usize;
        let serial = self.slots[index].serial;
        self.record.error(ErrorKind::Unreachable, index, || refusal(serial, &error));
    }

    /// Sends only now, so that what had come has been timed before.
    fn turn_ended(&mut self, outlet: &mut Outlet<'_, D>) {
        self.feed_port(outlet);
    }
}

impl Slot {
    /// Forgets the datagrams in front that are answered.
    fn forget_answered(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.sent == ANSWERED) {
            self.flights.pop_front();
            self.answered_early -= 1;
        }
    }
}

/// Numbers that lie close together become such that do not, so that none of them becomes another one by a few altered bits.
/// [`gather`] is its inverse: the two factors' product is 1 (modulo 2^64).
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn gather(wire: u64) -> u64 {
    wire.wrapping_mul(0xF1DE_83E1_9937_733D).rotate_left(32).wrapping_mul(0xF1DE_83E1_9937_733D)
}

fn refusal(serial: u64, error: &io::Error) -> String {
    format!("socket {serial}: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::clock::Clock;
    use crate::bench::load::{Shape, Traffic};
    use crate::reactor::scripted::{ScriptedPort, readable, writable};
    use crate::reactor::{Datagrams, Source};
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::time::{Duration, Instant};

    const SERVER: u16 = 7;

    /// A socket with a slot on it, and a network that loses, swaps, repeats and alters datagrams as it is told.
    struct World {
        datagrams: Datagrams<ScriptedPort, Load>,
        token: Token,
        socket: ScriptedPort,
        fates: VecDeque<u8>,
        lost: u64,
        repeated: u64,
        altered: u64,
    }

    fn world(largest: u64, smallest: u64, depth: u64, messages: u64) -> World {
        let socket = ScriptedPort::default();
        let load = Load::new(&Shape::single((smallest, largest), depth), Clock::new(Instant::now));
        let mut datagrams = Datagrams::new(load, 0);
        let token = datagrams.add(|_| Ok(socket.clone())).unwrap();
        let target = SocketAddr::from(([127, 0, 0, 1], SERVER));
        datagrams.with(token, |load, outlet| load.open_port(0, target, outlet));
        let load = datagrams.protocol_mut();
        load.start(Traffic::Closed);
        let now = load.clock.read();
        load.open_window(now, None, Some(messages));
        World { datagrams, token, socket, fates: VecDeque::new(), lost: 0, repeated: 0, altered: 0 }
    }

    impl World {
        fn load(&mut self) -> &mut Load {
            self.datagrams.protocol_mut()
        }

        /// Sends what is to be sent, and echoes it.
        fn feed(&mut self) {
            self.datagrams.with(self.token, |load, outlet| load.feed_port(outlet));
            self.echo();
        }

        /// Receives what has come back, and sends what follows, which is echoed.
        fn turn(&mut self) {
            let now = Instant::now();
            self.datagrams.turn_with(now, [readable(self.token), writable(self.token)]);
            self.echo();
        }

        fn echo(&mut self) {
            let post = &mut *self.socket.0.borrow_mut();
            for (mut bytes, server) in post.sent.drain(..) {
                assert_eq!(server.port(), SERVER);
                match self.fates.pop_front() {
                    Some(0) => self.lost += 1,
                    Some(1) => post.arriving.push_front(Ok((bytes, server))),
                    Some(2) => {
                        self.repeated += 1;
                        post.arriving.extend([Ok((bytes.clone(), server)), Ok((bytes, server))]);
                    }
                    Some(3) => {
                        self.altered += 1;
                        *bytes.last_mut().unwrap() ^= 1;
                        post.arriving.push_back(Ok((bytes, server)));
                    }
                    _ => post.arriving.push_back(Ok((bytes, server))),
                }
            }
        }

        fn is_silent(&self) -> bool {
            self.socket.0.borrow().arriving.is_empty()
        }
    }

    /// What a send says. That an earlier datagram was refused says nothing about this one.
    fn answer() -> impl Strategy<Value = Vec<Result<(), Io>>> {
        let refused = vec![Err(Io::ConnectionRefused), Ok(())];
        prop_oneof![
            5 => Just(vec![Ok(())]),
            1 => Just(vec![Err(Io::WouldBlock)]),
            1 => Just(vec![Err(Io::Interrupted)]),
            1 => Just(refused),
        ]
    }

    proptest! {
        #[test]
        fn altered_numbers_are_no_numbers_of_others(number in 0u64..1 << 40, bit in 0u32..64) {
            prop_assert_eq!(gather(scatter(number)), number);
            prop_assert!(gather(scatter(number) ^ 1 << bit) >> 40 != 0 || bit > 63);
        }
    }

    proptest! {
        #[test]
        fn whatever_becomes_of_datagrams_each_counts_once(
            answers in prop::collection::vec(answer(), 0..200),
            fates in prop::collection::vec(0u8..12, 0..200),
            largest in prop_oneof![Just(9u64), Just(64), Just(65_507)],
            depth in 1u64..20,
        ) {
            let mut world = world(largest, 9, depth, 100);
            world.fates = fates.into();
            let mut refused = answers.iter().filter(|answer| answer.len() == 2).count() as u64;
            world.socket.0.borrow_mut().answers = answers.concat().into();
            world.feed();
            let mut turns = 0;
            while !world.load().is_exhausted() {
                world.turn();
                prop_assert!(world.load().in_flight <= depth);
                if world.is_silent() {
                    world.load().expire_port(Nanos::MAX / 2);
                }
                turns += 1;
                prop_assert!(turns < 100_000, "it got stuck");
            }
            let left = &world.socket.0.borrow().answers;
            refused -= left.iter().filter(|answer| **answer == Err(Io::ConnectionRefused)).count() as u64;
            let load = world.datagrams.protocol_mut();
            let now = load.clock.read();
            load.close_window(now);
            load.settle(now, false);
            let wrong = load.record.error_count();
            let (ledger, _) = load.record.take(1).unwrap();
            prop_assert_eq!(ledger.outcomes.due, 100);
            prop_assert_eq!(wrong, world.altered + refused);
            prop_assert_eq!(ledger.outcomes.unanswered, world.lost + world.altered);
            prop_assert_eq!(ledger.outcomes.answered + ledger.outcomes.unanswered, 100);
            prop_assert_eq!(ledger.duplicates, world.repeated);
        }
    }

    #[test]
    fn datagrams_beyond_the_budget_wait_one_turn() {
        let mut world = world(64, 64, 40, 40);
        for sent in [16, 32, 40] {
            world.datagrams.turn(Instant::now()); // no event comes
            assert_eq!(world.socket.0.borrow().sent.len(), sent);
            let sleep = world.datagrams.sleep(Instant::now());
            assert_eq!(sleep, (sent < 40).then_some(Duration::ZERO), "after {sent}");
        }
    }

    #[test]
    fn order_is_noticed() {
        let mut world = world(64, 64, 4, 4);
        world.fates = [9, 1, 1, 9].into();
        world.feed();
        world.turn(); // 2, 1, 0, 3
        let ledger = world.load().record.ledger().unwrap();
        assert_eq!((ledger.outcomes.answered, ledger.reordered, ledger.duplicates), (4, 2, 0));
    }
}
