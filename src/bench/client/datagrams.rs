//! The load over datagrams: each message is one, and carries its number, for it may be lost, come late, or come twice.
//!
//! A socket that is connected to the server takes the part of a connection. Nothing is sent again: what has not come back
//! in time is lost, and counted. The contents are verified as everything is.

use std::io::{self, ErrorKind as Io};
use std::time::Duration;

use mio::Token;
use mio::net::UdpSocket;

use super::{ANSWERED, ErrorKind, Load, Nanos, Stage, connect_kind};

/// The bytes in which a datagram carries its number, big-endian.
pub(in crate::bench) const NUMBER: usize = 8;

/// The longest datagram over IPv4 (RFC 768, RFC 791).
pub(in crate::bench) const LONGEST: usize = 65_507;

/// Datagrams received from one socket before the others have their turn.
const BUDGET: usize = 256;

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

impl Load {
    /// A place gets a socket, which is there at once.
    pub fn open_port(&mut self, index: u32, token: Token) {
        self.connecting(index, token);
        self.set_stage(index as usize, Stage::Open);
    }

    /// Sends the datagrams that a place is to send now. Returns whether its socket is still of use.
    pub fn feed_port(&mut self, index: u32, port: &mut impl Port, buffer: &mut [u8]) -> bool {
        if self.places[index as usize].stage != Stage::Open {
            return false;
        }
        let sent = self.clock.at_message();
        while let Some(due) = self.may_begin(index) {
            let place = &self.places[index as usize];
            let (serial, number) = (place.serial, place.begun);
            let datagram = &mut buffer[..self.sizes.of(serial, number) as usize];
            datagram[..NUMBER].copy_from_slice(&number.to_be_bytes());
            let contents = self.payload.piece(serial, number * STRIDE, (datagram.len() - NUMBER) as u64);
            datagram[NUMBER..].copy_from_slice(contents);
            match port.send(datagram) {
                Ok(()) => self.begin(index, number, due, sent),
                Err(error) if error.kind() == Io::Interrupted => {}
                // It is still to be sent, and will be when the socket is writable.
                Err(error) if error.kind() == Io::WouldBlock => return true,
                Err(error) => return self.port_failed(index, &error),
            }
        }
        true
    }

    /// Takes in the datagrams that have come at a place. Returns whether its socket is still of use, and whether there
    /// may be more.
    pub fn receive_port(&mut self, index: u32, port: &mut impl Port, buffer: &mut [u8]) -> (bool, bool) {
        for _ in 0..BUDGET {
            match port.receive(buffer) {
                Ok(length) => self.datagram(index as usize, &buffer[..length]),
                Err(error) if error.kind() == Io::Interrupted => {}
                Err(error) if error.kind() == Io::WouldBlock => return (true, false),
                Err(error) => return (self.port_failed(index, &error), false),
            }
        }
        (true, true)
    }

    fn port_failed(&mut self, index: u32, error: &io::Error) -> bool {
        let text = format!("socket {}: {error}", self.places[index as usize].serial);
        // What a datagram met on its way is told by the next call (udp(7)).
        self.fail(index as usize, connect_kind(error), text);
        self.set_stage(index as usize, Stage::Closed);
        self.gone.push((index, true));
        false
    }

    /// Verifies a datagram, and takes note of the message that it answers.
    fn datagram(&mut self, index: usize, bytes: &[u8]) {
        let now = self.clock.at_message();
        let place = &self.places[index];
        let Some((number, contents)) = bytes.split_first_chunk::<NUMBER>() else {
            return self.wrong(index, 0, bytes);
        };
        let number = u64::from_be_bytes(*number);
        if number >= place.begun {
            return self.wrong(index, number, bytes);
        }
        let position = number * STRIDE;
        let right = self.payload.matching(place.serial, position, contents);
        let size = self.sizes.of(place.serial, number) as usize;
        if right < contents.len() || bytes.len() != size {
            return self.wrong(index, position + right as u64, &contents[right..]);
        }
        let first = place.flights.front().map_or(place.begun, |flight| flight.end);
        let Some(at) = number.checked_sub(first).map(|at| at as usize) else {
            // It was answered, or given up.
            return self.record.duplicate();
        };
        let flight = place.flights[at];
        if flight.sent == ANSWERED {
            return self.record.duplicate();
        }
        let place = &mut self.places[index];
        if number < place.received {
            self.record.reordered();
        }
        place.received = place.received.max(number);
        place.flights[at].sent = ANSWERED;
        place.answered_early += 1;
        while place.flights.front().is_some_and(|flight| flight.sent == ANSWERED) {
            place.flights.pop_front();
            place.answered_early -= 1;
        }
        self.in_flight -= 1;
        self.record.bytes(bytes.len() as u64);
        self.record.replies(1, flight.due, flight.sent, now);
    }

    /// Notes a datagram that is none of those that were sent.
    fn wrong(&mut self, index: usize, position: u64, got: &[u8]) {
        let mismatch = self.payload.explain(self.places[index].serial, position, got, std::iter::empty());
        self.record.error(ErrorKind::Mismatch, || mismatch.to_string());
        self.record.mismatch(mismatch);
    }

    /// Gives up the datagrams that have been away for longer than `timeout`. Returns the places that may send others.
    pub fn expire_datagrams(&mut self, timeout: Duration) -> Vec<u32> {
        let now = self.clock.read();
        let overdue = |sent: Nanos| sent != ANSWERED && now.saturating_sub(sent) > timeout.as_nanos() as Nanos;
        let mut freed = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if !place.flights.front().is_some_and(|flight| overdue(flight.sent)) {
                continue;
            }
            freed.push(index as u32);
            while let Some(&flight) =
                place.flights.front().filter(|flight| flight.sent == ANSWERED || overdue(flight.sent))
            {
                place.flights.pop_front();
                if flight.sent == ANSWERED {
                    place.answered_early -= 1;
                } else {
                    self.in_flight -= 1;
                    self.record.unanswered(flight.due);
                }
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::client::Traffic;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A network that loses, swaps, repeats and alters datagrams as it is told.
    #[derive(Default)]
    struct Network {
        fates: VecDeque<u8>,
        arriving: VecDeque<Vec<u8>>,
        lost: u64,
        repeated: u64,
        altered: u64,
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
        fn whatever_becomes_of_datagrams_each_is_counted_once(
            fates in prop::collection::vec(0u8..12, 0..200),
            largest in prop_oneof![Just(9u64), Just(64), Just(65_507)],
            depth in 1u64..20,
        ) {
            let mut network = Network { fates: fates.into(), ..Network::default() };
            let mut buffer = vec![0; LONGEST];
            let mut load = Load::new(7, (9, largest), depth, None, 1, 0);
            load.open_port(0, Token(0));
            load.start(Traffic::Closed);
            let now = load.clock.read();
            load.record.open_window(now, false);
            load.limit(Some(100));
            let mut turns = 0;
            while !load.is_exhausted() {
                prop_assert!(load.feed_port(0, &mut network, &mut buffer));
                prop_assert!(load.in_flight <= depth);
                prop_assert!(load.receive_port(0, &mut network, &mut buffer).0);
                if network.arriving.is_empty() {
                    load.expire_datagrams(Duration::ZERO);
                }
                turns += 1;
                prop_assert!(turns < 100_000, "it got stuck");
            }
            let now = load.clock.read();
            load.record.close_window(now, 0);
            let wrong = load.record.error_count();
            let window = load.record.take_window(1).unwrap();
            prop_assert_eq!(window.messages.sent, 100);
            prop_assert_eq!(wrong, network.altered);
            prop_assert_eq!(window.messages.unanswered, network.lost + network.altered);
            prop_assert_eq!(window.messages.replies + window.messages.unanswered, 100);
            prop_assert_eq!(window.duplicates, network.repeated);
        }
    }

    #[test]
    fn order_is_noticed() {
        let mut network = Network { fates: [9, 3, 3, 9].into(), ..Network::default() };
        let mut buffer = vec![0; LONGEST];
        let mut load = Load::new(7, (64, 64), 4, None, 1, 0);
        load.open_port(0, Token(0));
        load.start(Traffic::Closed);
        let now = load.clock.read();
        load.record.open_window(now, false);
        load.limit(Some(4));
        load.feed_port(0, &mut network, &mut buffer);
        load.receive_port(0, &mut network, &mut buffer); // 2, 1, 0, 3
        let window = load.record.window().unwrap();
        assert_eq!((window.messages.replies, window.reordered, window.duplicates), (4, 2, 0));
    }
}
