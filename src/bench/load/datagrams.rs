//! The load over datagrams: each message is one, and carries its number, for it may be lost, come late, or come twice.
//!
//! A socket that is connected to the server takes the part of a connection. Nothing is sent again: what has not come back
//! in time is lost, and counted. The contents are verified as everything is.

use std::io::{self, ErrorKind as Io};

use mio::Token;
use mio::net::UdpSocket;

use super::slot::{ANSWERED, Flight, Slot, Stage, UNKNOWN};
use super::{Load, Nanos, Outcome};
use crate::bench::payload::{Cause, Mismatch, Payload, hex};
use crate::bench::summary::ErrorKind;

/// The bytes in which a datagram carries its number, big-endian, mixed with its socket's own
/// [mark](crate::bench::payload::Payload::mark) so that no two sockets' are alike.
pub(in crate::bench) const NUMBER: usize = 8;

/// The longest datagram over IPv4 (RFC 768, RFC 791).
pub(in crate::bench) const MAX_DATAGRAM: usize = 65_507;

/// Datagrams received from one socket before the others have their turn.
const BUDGET: usize = 256;

/// Datagrams sent at one socket before the others have their turn: a socket whose receiver is full takes any number, and
/// drops them.
const SEND_BUDGET: usize = 16;

/// How far apart in the pattern successive datagrams begin. Any number that does not divide its period will do.
const STRIDE: u64 = 7919;

/// A non-blocking datagram socket that is connected to the server.
pub(in crate::bench) trait Port {
    /// Sends a datagram.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Receives one.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
}

impl Port for UdpSocket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        UdpSocket::send(self, bytes).map(|_| ())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.recv(into)
    }
}

/// Sends once more if the error is about a datagram that was sent before: the system tells it at the next call, and that
/// call does nothing else (udp(7)).
fn send(port: &mut impl Port, bytes: &[u8], mut tell: impl FnMut(&io::Error)) -> io::Result<()> {
    loop {
        match port.send(bytes) {
            Err(error) if error.kind() == Io::Interrupted => {}
            Err(error) if error.kind() == Io::ConnectionRefused => {
                tell(&error);
                return port.send(bytes);
            }
            sent => return sent,
        }
    }
}

/// The contents of a socket's datagram after its number.
fn contents(payload: &Payload, serial: u64, number: u64, size: u64) -> &[u8] {
    payload.piece(serial, number * STRIDE, size - NUMBER as u64)
}

impl Load {
    /// A slot gets a socket, which is there at once.
    pub fn open_port(&mut self, index: u32, token: Token) {
        let now = self.clock.read();
        self.connecting(index, token, now);
        self.is_open(index, now);
    }

    /// Sends the datagrams that a slot is to send now. Returns whether there are more.
    pub fn feed_port(&mut self, index: u32, port: &mut impl Port, buffer: &mut [u8]) -> bool {
        if self.slots[index as usize].stage != Stage::Open {
            return false;
        }
        let mut budget = SEND_BUDGET;
        while let Some(due) = self.may_begin(index) {
            if budget == 0 {
                return true;
            }
            budget -= 1;
            let Slot { serial, begun: number, .. } = self.slots[index as usize];
            let size = self.sizes.of(serial, number);
            let datagram = &mut buffer[..size as usize];
            datagram[..NUMBER].copy_from_slice(&self.wire(serial, number));
            datagram[NUMBER..].copy_from_slice(contents(&self.payload, serial, number, size));
            let now = self.clock.read();
            let record = &mut self.record;
            match send(port, datagram, |error| record.error(ErrorKind::Unreachable, || refusal(serial, error))) {
                // It is still to be sent, and will be when the socket is writable.
                Err(error) if error.kind() == Io::WouldBlock => {
                    self.slots[index as usize].set_free(false, now);
                    return false;
                }
                Err(error) if error.kind() == Io::Interrupted => continue,
                sent => {
                    self.begin(index, number, due, now);
                    if let Err(error) = sent {
                        self.never_left(index, &error, now);
                    }
                }
            }
        }
        let slot = &mut self.slots[index as usize];
        if !slot.is_free() {
            let now = self.clock.read();
            slot.set_free(true, now);
        }
        false
    }

    /// The bytes in which a socket's datagram carries its number.
    fn wire(&self, serial: u64, number: u64) -> [u8; NUMBER] {
        scatter(number ^ self.payload.mark(serial)).to_be_bytes()
    }

    /// The datagram that was begun last could not be sent.
    fn never_left(&mut self, index: u32, error: &io::Error, now: Nanos) {
        let slot = &mut self.slots[index as usize];
        let Some(flight) = slot.flights.pop_back() else { return };
        // It keeps its number, which nothing will come back with.
        slot.flights.push_back(Flight { sent: ANSWERED, ..flight });
        slot.answered_early += 1;
        self.in_flight -= 1;
        let serial = slot.serial;
        slot.forget_answered();
        self.record.error(ErrorKind::Unreachable, || refusal(serial, error));
        self.record.lost(1, flight.due, Some(flight.sent), now, Outcome::Failed, UNKNOWN);
    }

    /// Takes in the datagrams that have come at a slot. Returns whether there may be more.
    pub fn receive_port(&mut self, index: u32, port: &mut impl Port, buffer: &mut [u8]) -> bool {
        for _ in 0..BUDGET {
            match port.receive(buffer) {
                Ok(length) => self.datagram(index as usize, &buffer[..length]),
                Err(error) if error.kind() == Io::Interrupted => {}
                Err(error) if error.kind() == Io::WouldBlock => return false,
                // It is about a datagram that was sent before, and says nothing about the next one.
                Err(error) => {
                    let serial = self.slots[index as usize].serial;
                    self.record.error(ErrorKind::Unreachable, || refusal(serial, &error));
                }
            }
        }
        true
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
            return self.wrong(Mismatch {
                connection: serial,
                datagram: Some(number),
                offset: (NUMBER + same) as u64,
                expected: hex(&expected[same..]),
                got: hex(&got[same..]),
                cause: if all || bytes.len() as u64 != size { length } else { Cause::Altered },
            });
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
        self.wrong(Mismatch {
            connection: serial,
            datagram: Some(datagram),
            offset: at as u64,
            expected: hex(&expected[at..]),
            got: hex(&number[at..]),
            cause,
        });
    }

    /// Notes a datagram that is none of those that were sent.
    fn wrong(&mut self, mismatch: Mismatch) {
        self.record.error(ErrorKind::Mismatch, || mismatch.to_string());
        self.record.mismatch(mismatch);
    }

    /// Gives up the datagrams of a slot that have been away for too long. Returns the slot, which may send others.
    pub fn expire_port(&mut self, now: Nanos) -> Option<u32> {
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
        Some(index)
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
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::time::Instant;

    /// A network that loses, swaps, repeats and alters datagrams as it is told.
    #[derive(Default)]
    struct Network {
        fates: VecDeque<u8>,
        arriving: VecDeque<Vec<u8>>,
        lost: u64,
        repeated: u64,
        altered: u64,
        refused: u64,
    }

    impl Port for Network {
        fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
            match self.fates.pop_front() {
                Some(0) => return Err(Io::WouldBlock.into()),
                Some(1) => return Err(Io::Interrupted.into()),
                Some(2) => self.lost += 1,
                Some(3) => self.arriving.push_front(bytes.to_vec()),
                Some(4) => {
                    self.repeated += 1;
                    self.arriving.extend([bytes.to_vec(), bytes.to_vec()]);
                }
                Some(5) => {
                    self.altered += 1;
                    let mut altered = bytes.to_vec();
                    *altered.last_mut().unwrap() ^= 1;
                    self.arriving.push_back(altered);
                }
                // An earlier one was refused, which says nothing about this one.
                Some(6) => {
                    self.refused += 1;
                    self.fates.push_front(9);
                    return Err(Io::ConnectionRefused.into());
                }
                _ => self.arriving.push_back(bytes.to_vec()),
            }
            Ok(())
        }

        fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let bytes = self.arriving.pop_front().ok_or(Io::WouldBlock)?;
            into[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
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
            fates in prop::collection::vec(0u8..12, 0..200),
            largest in prop_oneof![Just(9u64), Just(64), Just(65_507)],
            depth in 1u64..20,
        ) {
            let mut network = Network { fates: fates.into(), ..Network::default() };
            let mut buffer = vec![0; MAX_DATAGRAM];
            let mut load = Load::new(&Shape::single((9, largest), depth), Clock::new(Instant::now));
            load.open_port(0, Token(0));
            load.start(Traffic::Closed);
            let now = load.clock.read();
            load.open_window(now, None, Some(100));
            let mut turns = 0;
            while !load.is_exhausted() {
                while load.feed_port(0, &mut network, &mut buffer) {}
                prop_assert!(load.in_flight <= depth);
                load.receive_port(0, &mut network, &mut buffer);
                if network.arriving.is_empty() {
                    load.expire_port(Nanos::MAX / 2);
                }
                turns += 1;
                prop_assert!(turns < 100_000, "it got stuck");
            }
            let now = load.clock.read();
            load.close_window(now);
            load.settle(now, false);
            let wrong = load.record.error_count();
            let (ledger, _) = load.record.take(1).unwrap();
            prop_assert_eq!(ledger.outcomes.due, 100);
            prop_assert_eq!(wrong, network.altered + network.refused);
            prop_assert_eq!(ledger.outcomes.unanswered, network.lost + network.altered);
            prop_assert_eq!(ledger.outcomes.answered + ledger.outcomes.unanswered, 100);
            prop_assert_eq!(ledger.duplicates, network.repeated);
        }
    }

    #[test]
    fn order_is_noticed() {
        let mut network = Network { fates: [9, 3, 3, 9].into(), ..Network::default() };
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut load = Load::new(&Shape::single((64, 64), 4), Clock::new(Instant::now));
        load.open_port(0, Token(0));
        load.start(Traffic::Closed);
        let now = load.clock.read();
        load.open_window(now, None, Some(4));
        load.feed_port(0, &mut network, &mut buffer);
        load.receive_port(0, &mut network, &mut buffer); // 2, 1, 0, 3
        let ledger = load.record.ledger().unwrap();
        assert_eq!((ledger.outcomes.answered, ledger.reordered, ledger.duplicates), (4, 2, 0));
    }
}
