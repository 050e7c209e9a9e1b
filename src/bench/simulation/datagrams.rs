//! The network of the simulated world for datagrams: it loses them, holds them up, swaps, repeats and alters them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind as Io};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::Token;

use super::{Kind, Message, Nanos, Net, now};
use crate::reactor::{DatagramSocket, Envelope, Readiness};

/// Where the server is.
pub(super) const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7777);

/// What comes back at a socket.
enum Mail {
    /// The echo of the datagram with this number, in the order in which they were sent; and whether it is as it was sent.
    Echo(usize, Vec<u8>, bool),
    /// That nobody listened where one was sent to.
    Refusal,
}

/// A datagram that was sent.
struct Posted {
    at: Instant,
    /// When an echo of it was received that was as it was sent.
    received: Option<Instant>,
}

/// One socket of the generator's.
pub(super) struct Mailbox {
    token: Token,
    slot: u64,
    /// What is on its way, in the order in which it arrives; and what has arrived.
    coming: Vec<(Instant, Mail)>,
    arrived: VecDeque<Mail>,
    /// Until when there is no room to send.
    full_until: Option<Instant>,
    edge: bool,
    posted: Vec<Posted>,
}

impl Mailbox {
    pub(super) fn new(token: Token, slot: u32) -> Self {
        Mailbox {
            token,
            slot: u64::from(slot),
            coming: Vec::new(),
            arrived: VecDeque::new(),
            full_until: None,
            edge: false,
            posted: Vec::new(),
        }
    }

    /// Takes in what has arrived by now.
    fn advance(&mut self) {
        while self.coming.first().is_some_and(|(at, _)| *at <= now()) {
            self.arrived.push_back(self.coming.remove(0).1);
            self.edge = true;
        }
        if self.full_until.take_if(|until| *until <= now()).is_some() {
            self.edge = true;
        }
    }

    /// What the poll tells.
    pub(super) fn readiness(&mut self) -> Option<Readiness> {
        self.advance();
        let ready = Readiness { token: self.token, readable: true, writable: true, read_closed: false, urgent: false };
        std::mem::take(&mut self.edge).then_some(ready)
    }

    /// When anything happens next.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.edge {
            return Some(now());
        }
        self.coming.first().map(|(at, _)| *at).into_iter().chain(self.full_until).min()
    }

    fn post(&mut self, at: Instant, mail: Mail) {
        let place = self.coming.partition_point(|(other, _)| *other <= at);
        self.coming.insert(place, (at, mail));
    }
}

/// The generator's end of it.
pub(super) struct Socket {
    pub(super) mailbox: Rc<RefCell<Mailbox>>,
    pub(super) net: Rc<RefCell<Net>>,
}

impl DatagramSocket for Socket {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)> {
        let mailbox = &mut *self.mailbox.borrow_mut();
        mailbox.advance();
        match mailbox.arrived.pop_front() {
            None => Err(Io::WouldBlock.into()),
            Some(Mail::Refusal) => Err(Io::ConnectionRefused.into()),
            Some(Mail::Echo(number, bytes, whole)) => {
                if whole {
                    mailbox.posted[number].received.get_or_insert(now());
                }
                into[..bytes.len()].copy_from_slice(&bytes);
                Ok((bytes.len(), Envelope::from(SERVER)))
            }
        }
    }

    fn send(&mut self, bytes: &[u8], _: &Envelope) -> io::Result<()> {
        let mailbox = &mut *self.mailbox.borrow_mut();
        mailbox.advance();
        // The system tells of an earlier refusal at any call, and that call does nothing else (udp(7)).
        if let Some(at) = mailbox.arrived.iter().position(|mail| matches!(mail, Mail::Refusal)) {
            mailbox.arrived.remove(at);
            return Err(Io::ConnectionRefused.into());
        }
        let net = &mut *self.net.borrow_mut();
        if mailbox.full_until.is_some() {
            return Err(Io::WouldBlock.into());
        }
        if matches!(net.kind, Kind::Lossy { .. }) && net.rng.u8(..32) == 0 {
            mailbox.full_until = Some(now() + Duration::from_micros(net.rng.u64(1..500)));
            return Err(Io::WouldBlock.into());
        }
        let number = mailbox.posted.len();
        mailbox.posted.push(Posted { at: now(), received: None });
        for (at, mail) in net.carry(mailbox.slot, number, bytes) {
            mailbox.post(at, mail);
        }
        Ok(())
    }
}

impl Net {
    /// Decides what comes of a datagram, and when.
    fn carry(&mut self, slot: u64, number: usize, bytes: &[u8]) -> Vec<(Instant, Mail)> {
        let hop = Duration::from_micros(self.rng.u64(5..self.hop));
        let arrives = now() + hop;
        if !self.is_up() {
            self.refused += 1;
            return vec![(arrives, Mail::Refusal)];
        }
        let echo = Mail::Echo(number, bytes.to_vec(), true);
        let at = match self.kind {
            Kind::Lossy { lost, repeated, late } => {
                if self.rng.f64() < lost {
                    return Vec::new();
                }
                let at = arrives + late.mul_f64(self.rng.f64().powi(3));
                if self.rng.f64() < repeated {
                    self.repeated += 1;
                    let again = at + late.mul_f64(self.rng.f64());
                    return vec![(at, echo), (again, Mail::Echo(number, bytes.to_vec(), true))];
                }
                at
            }
            Kind::Lying(since) if !self.lied && now() >= self.at(since) => {
                self.lied = true;
                let mut bytes = bytes.to_vec();
                let at = self.rng.usize(..bytes.len());
                bytes[at] ^= 1 << self.rng.u8(..8);
                return vec![(arrives, Mail::Echo(number, bytes, false))];
            }
            Kind::Deaf(served) if slot >= served => return Vec::new(),
            Kind::Slow(most) => arrives + most.mul_f64(self.rng.f64()),
            Kind::Frozen(from, to) if (self.at(from)..self.at(to)).contains(&arrives) => self.at(to),
            Kind::Capped(rate) => {
                self.busy_until = self.busy_until.max(arrives) + Duration::from_secs_f64(bytes.len() as f64 / rate);
                self.busy_until
            }
            _ => arrives,
        };
        vec![(at, echo)]
    }
}

/// All datagrams that left.
pub(super) fn messages(net: &Net, time: impl Fn(Instant) -> Nanos) -> Vec<Message> {
    let mut messages = Vec::new();
    for mailbox in &net.mailboxes {
        messages.extend(
            mailbox
                .borrow()
                .posted
                .iter()
                .map(|posted| Message { written: time(posted.at), read: posted.received.map(&time) }),
        );
    }
    messages
}
