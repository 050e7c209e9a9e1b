//! Datagrams: the one loop of every program that sends and receives them.
//!
//! There are no connections, so there is nothing to wait for when a socket's send queue is full: the datagram is dropped
//! and counted, as the network would have done, or its sender tries again when the socket is writable. Readiness is an
//! edge here too: a socket stays *ready* until a receive said WouldBlock. An error that a receive reports may be about a
//! datagram that was sent earlier (udp(7)); the socket goes on, and an error that stays is a pause.
//!
//! A protocol on it is one method. RFC 868's time service, whole:
//!
//! ```no_run
//! use std::time::{Duration, Instant, SystemTime};
//!
//! use echoloop::reactor::{DatagramProtocol, DatagramSocket, Datagrams, Envelope, Outlet};
//! use echoloop::reactor::{Poller, SocketOptions, Source, UdpPort};
//!
//! struct Time;
//!
//! impl<D: DatagramSocket> DatagramProtocol<D> for Time {
//!     fn received(&mut self, outlet: &mut Outlet<'_, D>, envelope: &Envelope, bytes: &[u8]) {
//!         if envelope.to_many || !bytes.is_empty() {
//!             return; // neither a whole network, nor another server's answer, is answered (CVE-2024-2169)
//!         }
//!         let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
//!         let seconds = (since.as_secs() + 2_208_988_800) as u32; // since 1900
//!         outlet.send(&seconds.to_be_bytes(), envelope); // if there is no room, it is dropped and counted
//!     }
//! }
//!
//! let mut poller = Poller::new(Duration::ZERO)?;
//! let mut datagrams = Datagrams::new(Time, 0);
//! let (address, options) = ("127.0.0.1:9037".parse()?, SocketOptions::default());
//! datagrams.add(|token| UdpPort::bind(address, &options, poller.registry(), token))?;
//! loop {
//!     let (now, events) = poller.wait(datagrams.sleep(Instant::now()))?;
//!     datagrams.turn_with(now, events);
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use log::trace;
use mio::Token;
use slab::Slab;

use super::pause::{Pause, uninterrupted};
use super::source::{Readiness, Source, shortest};

/// Datagrams received from one socket in a turn before the others get theirs.
pub const DATAGRAM_BUDGET: usize = 256;

/// No datagram is longer (RFC 768): 65,507 bytes over IPv4, 65,527 over IPv6.
pub const MAX_DATAGRAM: usize = 65_535;

/// The addresses of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The sender, to which an answer goes.
    pub from: SocketAddr,
    /// The address of ours that it was sent to, if the socket has several: the answer must come from there, or the
    /// sender will not take it for one.
    pub to: Option<IpAddr>,
    /// It was sent to a broadcast or multicast address.
    pub to_many: bool,
}

impl From<SocketAddr> for Envelope {
    fn from(from: SocketAddr) -> Self {
        Envelope { from, to: None, to_many: false }
    }
}

/// A non-blocking datagram socket.
pub trait DatagramSocket {
    /// Receives the next datagram, whole.
    ///
    /// # Errors
    ///
    /// What the kernel reports (recvmsg(2)).
    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)>;

    /// Sends a datagram to where one came from.
    ///
    /// # Errors
    ///
    /// What the kernel reports (sendmsg(2)); `WouldBlock` if the send queue is full.
    fn send(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()>;

    /// How many datagrams may have come that were not received yet.
    fn max_queued(&self) -> usize {
        usize::MAX
    }
}

/// What a service does with datagrams.
pub trait DatagramProtocol<D: DatagramSocket>: Sized {
    /// A datagram has come.
    fn received(&mut self, outlet: &mut Outlet<'_, D>, envelope: &Envelope, bytes: &[u8]);

    /// The socket's turn is over: what had come has been received, as far as its budget goes, and there may be room to
    /// send again.
    fn turn_ended(&mut self, _outlet: &mut Outlet<'_, D>) {}

    /// When the next of the datagrams that it holds back is due; `None` if it holds none.
    fn next_due(&self) -> Option<Instant> {
        None
    }

    /// Takes a datagram out that it has held back and that is due, with the socket that it is to leave by.
    fn take_due(&mut self, _now: Instant) -> Option<(Token, Vec<u8>, Envelope)> {
        None
    }

    /// A receive failed, perhaps for what was sent earlier.
    fn failed(&mut self, _outlet: &mut Outlet<'_, D>, _error: io::Error) {}
}

/// What became of a datagram that was to be sent.
#[derive(Debug)]
pub enum Sent {
    /// The kernel took it.
    Taken,
    /// There was no room: it was dropped. [`turn_ended`](DatagramProtocol::turn_ended) is called when there is.
    NoRoom,
    /// The kernel refused it, as when there is no route.
    Failed(io::Error),
}

crate::counters! {
    /// What happened to datagrams.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct DatagramCounters {
        /// Datagrams received, whatever became of them
        received: Total = "datagrams",
        /// Bytes received in datagrams
        received_bytes: Total = "in",
        /// Datagrams sent
        sent: Total = "sent back",
        /// Bytes sent in datagrams
        sent_bytes: Total = "out",
        /// Datagrams dropped because the send queue was full
        dropped: Total = "dropped",
        /// Datagrams that the kernel refused to send
        failed: Total = "failed",
        /// Receives that failed, perhaps for what was sent earlier
        receive_errors: Total = "receive errors",
    }
}

/// A socket, as its protocol sees it during a call.
pub struct Outlet<'a, D> {
    socket: &'a mut D,
    token: Token,
    now: Instant,
    wants_turn: &'a mut bool,
    counters: &'a mut DatagramCounters,
}

impl<D: DatagramSocket> Outlet<'_, D> {
    /// Sends a datagram to where `envelope` came from.
    pub fn send(&mut self, bytes: &[u8], envelope: &Envelope) -> Sent {
        match uninterrupted(|| self.socket.send(bytes, envelope)) {
            Ok(()) => {
                self.counters.sent += 1;
                self.counters.sent_bytes += bytes.len() as u64;
                Sent::Taken
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.counters.dropped += 1;
                Sent::NoRoom
            }
            Err(error) => {
                self.counters.failed += 1;
                Sent::Failed(error)
            }
        }
    }

    /// Asks for another turn, and so for [`turn_ended`](DatagramProtocol::turn_ended), without waiting for an event: for a
    /// protocol that has more to send than is fair in one turn.
    pub fn go_on(&mut self) {
        *self.wants_turn = true;
    }

    /// The socket's token.
    pub fn token(&self) -> Token {
        self.token
    }

    /// When this turn of the loop began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The socket, to ask it something.
    pub fn socket(&self) -> &D {
        self.socket
    }
}

struct Port<D> {
    socket: D,
    /// Its last receive did not say WouldBlock, so there may be datagrams that no edge will announce.
    readable: bool,
    /// It became writable, or its protocol has more to do, and it has had no turn since.
    wants_turn: bool,
    /// Its key is in the ready queue.
    queued: bool,
    pause: Pause,
    /// How many datagrams it still receives, once it is to be dropped when it has none left.
    remaining: Option<usize>,
}

impl<D> Port<D> {
    fn may_receive(&self) -> bool {
        self.readable && self.pause.until().is_none()
    }
}

/// Datagram sockets, and which of them can make a step.
pub struct Datagrams<D, P> {
    ports: Slab<Port<D>>,
    /// Keys of sockets that can make a step without waiting for an event, each once.
    ready: Vec<u32>,
    /// Keys of sockets that pause.
    paused: Vec<u32>,
    buffer: Box<[u8]>,
    protocol: P,
    counters: DatagramCounters,
    first_token: usize,
    now: Instant,
}

impl<D: DatagramSocket, P: DatagramProtocol<D>> Datagrams<D, P> {
    /// A loop without sockets; the tokens of those to come are `first_token` and those that follow, one for each.
    pub fn new(protocol: P, first_token: usize) -> Self {
        Datagrams {
            ports: Slab::new(),
            ready: Vec::new(),
            paused: Vec::new(),
            buffer: Box::default(),
            protocol,
            counters: DatagramCounters::default(),
            first_token,
            now: Instant::now(),
        }
    }

    /// Adds the socket that `make` returns, registered under the token it is given.
    ///
    /// # Errors
    ///
    /// What `make` returns; nothing is added then.
    pub fn add(&mut self, make: impl FnOnce(Token) -> io::Result<D>) -> io::Result<Token> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; MAX_DATAGRAM].into_boxed_slice();
        }
        let entry = self.ports.vacant_entry();
        let token = Token(self.first_token + entry.key());
        let socket = make(token)?;
        // Something may have come before it was in the poll.
        entry.insert(Port {
            socket,
            readable: true,
            wants_turn: false,
            queued: false,
            pause: Pause::default(),
            remaining: None,
        });
        self.queue(token.0 - self.first_token);
        Ok(token)
    }

    /// Drops a socket, if it is there.
    pub fn remove(&mut self, token: Token) {
        self.ports.try_remove(self.key(token));
    }

    /// Lets the protocol act on one socket outside of an event. Returns whether the socket was there.
    pub fn with<R>(&mut self, token: Token, act: impl FnOnce(&mut P, &mut Outlet<'_, D>) -> R) -> Option<R> {
        let port = self.ports.get_mut(self.key(token))?;
        let (now, counters, wants_turn) = (self.now, &mut self.counters, &mut port.wants_turn);
        let mut outlet = Outlet { socket: &mut port.socket, token, now, wants_turn, counters };
        let done = act(&mut self.protocol, &mut outlet);
        self.queue(self.key(token));
        Some(done)
    }

    /// Receives what has come so far, and then drops each socket. More may come all the time, so no more are received than
    /// can be waiting.
    pub fn drain(&mut self) {
        for key in self.ports.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            let port = &mut self.ports[key];
            port.remaining = Some(port.socket.max_queued());
            port.readable = true;
            self.queue(key);
        }
    }

    /// Drops all sockets.
    pub fn close(&mut self) {
        self.ports.clear();
        self.ready.clear();
        self.paused.clear();
    }

    /// The number of sockets that can make a step without an event.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Whether there is no socket.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// What has been counted.
    pub fn counters(&self) -> &DatagramCounters {
        &self.counters
    }

    /// The protocol.
    pub fn protocol(&self) -> &P {
        &self.protocol
    }

    /// The protocol, to change it.
    pub fn protocol_mut(&mut self) -> &mut P {
        &mut self.protocol
    }

    fn key(&self, token: Token) -> usize {
        token.0.wrapping_sub(self.first_token)
    }

    fn queue(&mut self, key: usize) {
        let port = &mut self.ports[key];
        if !port.queued && (port.may_receive() || port.wants_turn) {
            port.queued = true;
            self.ready.push(key as u32);
        }
    }

    /// Makes the steps that one socket can make now, within its budget.
    fn serve(&mut self, key: usize) {
        let Some(port) = self.ports.get_mut(key) else { return };
        (port.queued, port.wants_turn) = (false, false);
        let token = Token(self.first_token + key);
        let (now, counters, wants_turn) = (self.now, &mut self.counters, &mut port.wants_turn);
        let mut outlet = Outlet { socket: &mut port.socket, token, now, wants_turn, counters };
        for _ in 0..DATAGRAM_BUDGET {
            if !port.readable || port.pause.until().is_some() || port.remaining == Some(0) {
                break;
            }
            match uninterrupted(|| outlet.socket.receive(&mut self.buffer)) {
                Ok((length, envelope)) => {
                    port.pause.succeeded();
                    port.pause.end_episode(|| "receiving datagrams goes on".to_owned());
                    port.remaining = port.remaining.map(|remaining| remaining - 1);
                    outlet.counters.received += 1;
                    outlet.counters.received_bytes += length as u64;
                    self.protocol.received(&mut outlet, &envelope, &self.buffer[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    port.pause.succeeded();
                    port.readable = false;
                }
                Err(error) => {
                    trace!("udp token {key}: receiving datagrams: {error}");
                    outlet.counters.receive_errors += 1;
                    if port.pause.is_persistent() {
                        port.pause.begin(self.now);
                        let tell = || format!("receiving datagrams pauses: {error}; it is tried again soon");
                        port.pause.begin_episode(self.now, tell);
                        self.paused.push(key as u32);
                    }
                    self.protocol.failed(&mut outlet, error);
                }
            }
        }
        self.protocol.turn_ended(&mut outlet);
        if port.remaining.is_some_and(|remaining| remaining == 0 || !port.readable) {
            self.ports.remove(key);
            return;
        }
        self.queue(key);
    }

    /// Ends the pauses whose time has passed.
    fn resume(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.paused) {
            let Some(port) = self.ports.get_mut(key as usize) else { continue };
            if port.pause.is_over(self.now, false) {
                self.queue(key as usize);
            } else {
                self.paused.push(key);
            }
        }
    }
}

impl<D: DatagramSocket, P: DatagramProtocol<D>> Source for Datagrams<D, P> {
    fn note(&mut self, readiness: Readiness) {
        let key = self.key(readiness.token);
        if let Some(port) = self.ports.get_mut(key) {
            // Whatever it reports: what a send has asked for may have come by now, and to look costs less than another wait.
            port.readable = true;
            port.wants_turn |= readiness.writable;
            trace!(
                "udp token {key}: ready:{}{}",
                if readiness.readable { " READABLE" } else { "" },
                if readiness.writable { " WRITABLE" } else { "" }
            );
            self.queue(key);
        }
    }

    fn turn(&mut self, now: Instant) {
        self.now = now;
        self.resume();
        let ready = self.ready.len();
        for at in 0..ready {
            self.serve(self.ready[at] as usize);
        }
        self.ready.drain(..ready);
        while let Some((token, bytes, envelope)) = self.protocol.take_due(now) {
            self.with(token, |_, outlet| outlet.send(&bytes, &envelope));
        }
    }

    fn sleep(&self, now: Instant) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let until = |then: Instant| then.saturating_duration_since(now);
        let pauses = self.paused.iter().map(|&key| Some(until(self.ports.get(key as usize)?.pause.until()?)));
        shortest(pauses.chain([self.protocol.next_due().map(until)]))
    }
}
