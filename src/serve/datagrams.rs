//! Echo over UDP: each datagram goes back whole to its sender, empty ones and the largest too (RFC 862).
//!
//! What an answer must not do is start a conversation between two services that answer everything; that, and access
//! control, is the [`DatagramGate`]'s business.

use std::time::Instant;

use log::{debug, trace};
use mio::Token;

use super::access::{DatagramGate, Question};
use super::echo::{SharedPrinter, print_datagram};
use super::fault::DatagramFaults;
use crate::count::counted;
use crate::reactor::socket::Origin;
use crate::reactor::{DatagramProtocol, DatagramSocket, Envelope, Outlet, Sent};

/// The echo of datagrams.
pub(super) struct DatagramEcho {
    pub gate: DatagramGate,
    pub printer: Option<SharedPrinter>,
    /// It prints hex dumps.
    pub hex: bool,
    /// What is to be done wrong.
    pub faults: Option<Box<DatagramFaults>>,
}

impl<D: DatagramSocket> DatagramProtocol<D> for DatagramEcho {
    fn received(&mut self, outlet: &mut Outlet<'_, D>, envelope: &Envelope, bytes: &[u8]) {
        let from = envelope.from;
        if let Err(refusal) = self.gate.admit(&Question { from, to_many: envelope.to_many, bytes }, outlet.now()) {
            debug!("datagram from {from} not answered: {refusal}");
            return;
        }
        if let Some(printer) = &self.printer {
            print_datagram(printer, self.hex, Origin::Ip(from), bytes);
        }
        let sent = match &mut self.faults {
            None => outlet.send(bytes, envelope),
            Some(faults) => faults.answer(outlet, bytes, envelope),
        };
        match sent {
            Sent::Taken => trace!("datagram from {from}: {} sent back", counted(bytes.len(), "byte")),
            Sent::NoRoom => trace!("datagram from {from} dropped: the send queue is full"),
            Sent::Failed(error) => debug!("datagram from {from} not answered: {error}"),
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.faults.as_ref()?.next_due()
    }

    fn take_due(&mut self, now: Instant) -> Option<(Token, Vec<u8>, Envelope)> {
        self.faults.as_mut()?.take_due(now)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::num::NonZeroU32;
    use std::time::Duration;

    use rustix::io::Errno;

    use super::super::access::{AccessOptions, Refusal};
    use super::*;
    use crate::reactor::datagrams::DATAGRAM_BUDGET;
    use crate::reactor::scripted::{ScriptedPort, readable};
    use crate::reactor::{DatagramCounters, Datagrams, Source};

    struct World {
        datagrams: Datagrams<ScriptedPort, DatagramEcho>,
        port: ScriptedPort,
        token: Token,
        now: Instant,
    }

    fn world(access: &AccessOptions) -> World {
        let port = ScriptedPort::default();
        let mut gate = DatagramGate::new(access);
        gate.set_own_ports(vec![7777]);
        let mut datagrams = Datagrams::new(DatagramEcho { gate, printer: None, hex: false, faults: None }, 100);
        let token = datagrams.add(|_| Ok(port.clone())).unwrap();
        let mut world = World { datagrams, port, token, now: Instant::now() };
        world.turn(); // what may have come before it was in the poll
        world
    }

    impl World {
        fn turn(&mut self) {
            self.datagrams.turn(self.now);
        }

        fn wake(&mut self) {
            self.datagrams.turn_with(self.now, [readable(self.token)]);
        }
    }

    #[test]
    fn each_goes_back_whole_to_its_sender() {
        let mut world = world(&AccessOptions::default());
        let largest = vec![7; 65_507];
        let all = [(&b"one"[..], 5001), (b"", 5002), (&largest, 5003), (b"one", 5001)];
        world.port.arrive(&all);
        world.turn();
        assert_eq!(world.port.sent(), [], "no readiness, no call");
        world.wake();
        assert_eq!(world.port.sent(), all.map(|(bytes, port)| (bytes.to_vec(), port)));
        let DatagramCounters { received, sent, received_bytes, sent_bytes, .. } = *world.datagrams.counters();
        assert_eq!((received, sent, received_bytes, sent_bytes), (4, 4, 65_513, 65_513));
    }

    #[test]
    fn unsendable_datagram_is_dropped_and_errors_end_nothing() {
        let mut world = world(&AccessOptions::default());
        world.port.arrive(&[(b"a", 5000), (b"b", 5000)]);
        world.port.0.borrow_mut().arriving.push_back(Err(ErrorKind::ConnectionRefused.into()));
        world.port.0.borrow_mut().arriving.push_back(Err(ErrorKind::Interrupted.into()));
        world.port.arrive(&[(b"c", 5000), (b"d", 5000)]);
        let answers = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::NetworkUnreachable];
        world.port.0.borrow_mut().answers.extend(answers.map(Err));
        world.wake();
        assert_eq!(world.port.sent(), [(b"c".to_vec(), 5000), (b"d".to_vec(), 5000)]);
        let DatagramCounters { received, sent, dropped, failed, receive_errors, .. } = *world.datagrams.counters();
        assert_eq!((received, sent, dropped, failed, receive_errors), (4, 2, 1, 1, 1));
    }

    #[test]
    fn an_edge_lasts_until_would_block() {
        let mut world = world(&AccessOptions::default());
        (0..DATAGRAM_BUDGET + 1).for_each(|_| world.port.arrive(&[(b"x", 5000)]));
        world.wake();
        let seen = |world: &World| (world.port.sent().len(), world.datagrams.sleep(world.now));
        assert_eq!(seen(&world), (DATAGRAM_BUDGET, Some(Duration::ZERO)));
        world.turn();
        assert_eq!(seen(&world), (DATAGRAM_BUDGET + 1, None));
        (0..DATAGRAM_BUDGET).for_each(|_| world.port.arrive(&[(b"x", 5000)]));
        world.port.arrive(&[(b"last", 5000)]);
        world.datagrams.drain();
        while world.datagrams.sleep(world.now) == Some(Duration::ZERO) {
            world.turn();
        }
        assert_eq!(world.port.sent().last().unwrap().0, b"last", "what came before the end is answered");
        assert!(world.datagrams.is_empty());
    }

    #[test]
    fn flood_does_not_keep_socket_from_ending() {
        let mut world = world(&AccessOptions::default());
        world.port.0.borrow_mut().max_queued = Some(3);
        (0..10).for_each(|_| world.port.arrive(&[(b"x", 5000)]));
        world.datagrams.drain();
        world.turn();
        assert_eq!(world.port.sent().len(), 3);
        assert!(world.datagrams.is_empty());
    }

    #[test]
    fn a_receive_that_always_fails_pauses() {
        for errno in [Errno::ACCESS, Errno::NOMEM, Errno::IO] {
            let mut world = world(&AccessOptions::default());
            world.port.0.borrow_mut().fails = Some(errno);
            world.wake();
            let sleep = world.datagrams.sleep(world.now).expect("it is tried again");
            assert!(sleep >= Duration::from_millis(10), "{errno}: it does not spin");
            let before = world.port.0.borrow().receives;
            world.wake();
            assert_eq!(world.port.0.borrow().receives, before, "an edge does not end the pause");
            world.port.0.borrow_mut().fails = None;
            world.port.arrive(&[(b"again", 5000)]);
            world.now += sleep;
            world.turn();
            assert_eq!((world.port.sent().len(), world.datagrams.sleep(world.now)), (1, None));
        }
    }

    #[test]
    fn those_that_might_answer_the_answer_get_none() {
        let access = AccessOptions { datagram_rate: NonZeroU32::new(2), ..AccessOptions::default() };
        let mut world = world(&access);
        world.port.arrive(&[(b"dns", 53), (b"us", 7777), (b"1", 5000), (b"2", 5000), (b"3", 5000)]);
        world.wake();
        assert_eq!(world.port.sent(), [(b"1".to_vec(), 5000), (b"2".to_vec(), 5000)]);
        let refusals = world.datagrams.protocol().gate.refusals;
        assert_eq!((refusals.of(Refusal::Loop), refusals.of(Refusal::Rate)), (2, 1));
    }
}
