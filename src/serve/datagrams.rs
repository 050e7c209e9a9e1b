//! Echo over UDP: each datagram goes back whole to its sender, empty ones and the largest too (RFC 862).
//!
//! There are no connections, so nothing is remembered from one datagram to the next, and there is nothing to wait for:
//! when the socket's send queue is full, a datagram is dropped and counted, as the network would have done. What an
//! answer must not do is start a conversation between two services that answer everything; that, and who may ask at
//! all, is the [`DatagramGate`]'s business.
//!
//! Readiness is an edge here too: a socket stays *owed* until a receive said WouldBlock. This module knows that, and
//! reaches its sockets through [`Datagram`], so that a test can be the kernel.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use log::{debug, trace};
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Type};

use super::access::{DatagramGate, Question, is_group};
use super::listener::{SocketOptions, prepare};
use crate::reactor::Readiness;

/// Datagrams received from one socket in a turn before the others get theirs.
const BUDGET: usize = 256;

/// No datagram is longer (RFC 768): 65,507 bytes over IPv4, 65,527 over IPv6.
pub(super) const LONGEST: usize = 65_535;

/// Between whom a datagram went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Envelope {
    pub from: SocketAddr,
    /// The address of ours that it was sent to, if the socket has several: the answer must come from there, or whoever
    /// asked will not take it for one.
    pub to: Option<IpAddr>,
    /// It was sent to a broadcast or multicast address, as far as that is known.
    pub to_many: bool,
}

/// A non-blocking datagram socket.
pub(super) trait Datagram {
    /// Receives the next datagram, whole.
    ///
    /// # Errors
    ///
    /// What the kernel reports (recvmsg(2)).
    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)>;

    /// Sends a datagram back to where one came from.
    ///
    /// # Errors
    ///
    /// What the kernel reports (sendmsg(2)); `WouldBlock` if the send queue is full.
    fn answer(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()>;
}

/// What happened to datagrams. All numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatagramCounters {
    /// Datagrams received, whatever became of them.
    pub received: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Datagrams sent back.
    pub sent: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Dropped because the send queue was full.
    pub dropped: u64,
    /// Not sent because the kernel refused, as when there is no route.
    pub failed: u64,
}

struct Door<D> {
    token: Token,
    socket: D,
    owed: bool,
}

/// All datagram sockets of a server.
pub(super) struct Datagrams<D> {
    doors: Vec<Door<D>>,
    buffer: Box<[u8]>,
    gate: DatagramGate,
    counters: DatagramCounters,
}

impl<D: Datagram> Datagrams<D> {
    /// Answers on `sockets`, which are registered under these tokens.
    pub fn new(sockets: Vec<(Token, D)>, gate: DatagramGate) -> Self {
        let buffer = if sockets.is_empty() { Box::default() } else { vec![0; LONGEST].into_boxed_slice() };
        let doors = sockets.into_iter().map(|(token, socket)| Door { token, socket, owed: false }).collect();
        Datagrams { doors, buffer, gate, counters: DatagramCounters::default() }
    }

    /// Notes a socket's readiness. Returns whether it was one of these.
    pub fn mark(&mut self, readiness: &Readiness) -> bool {
        match self.doors.iter_mut().find(|door| door.token == readiness.token) {
            Some(door) => {
                door.owed |= readiness.readable;
                true
            }
            None => false,
        }
    }

    /// Answers what has come, within the budget; `see` is shown each datagram that is answered.
    pub fn turn(&mut self, now: Instant, mut see: impl FnMut(SocketAddr, &[u8])) {
        for door in &mut self.doors {
            for _ in 0..BUDGET {
                if !door.owed {
                    break;
                }
                let (length, envelope) = match door.socket.receive(&mut self.buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        door.owed = false;
                        break;
                    }
                    // An interruption, or an earlier answer's fate that the network tells of: not this receive's.
                    Err(error) => {
                        trace!("receiving datagrams: {error}");
                        continue;
                    }
                };
                let (from, bytes) = (envelope.from, &self.buffer[..length]);
                self.counters.received += 1;
                self.counters.bytes_in += length as u64;
                let question = Question { from, to_many: envelope.to_many, bytes };
                if let Err(refusal) = self.gate.admit(&question, now) {
                    debug!("datagram from {from} not answered: {refusal}");
                    continue;
                }
                see(from, bytes);
                match answer(&mut door.socket, bytes, &envelope) {
                    Ok(()) => {
                        trace!("datagram from {from}: {length} bytes went back");
                        self.counters.sent += 1;
                        self.counters.bytes_out += length as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.counters.dropped += 1,
                    Err(error) => {
                        debug!("datagram from {from} not answered: {error}");
                        self.counters.failed += 1;
                    }
                }
            }
        }
    }

    /// How long the poll may sleep as far as datagrams go; `None`: until something becomes ready.
    pub fn sleep(&self) -> Option<Duration> {
        self.doors.iter().any(|door| door.owed).then_some(Duration::ZERO)
    }

    /// Answers what has come so far, and closes the sockets.
    pub fn close(&mut self, now: Instant, see: impl FnMut(SocketAddr, &[u8])) {
        for door in &mut self.doors {
            door.owed = true;
        }
        self.turn(now, see);
        self.doors.clear();
    }

    /// Whether there is no socket.
    pub fn is_closed(&self) -> bool {
        self.doors.is_empty()
    }

    /// What happened so far.
    pub fn counters(&self) -> DatagramCounters {
        self.counters
    }

    /// Who was not answered.
    pub fn refusals(&self) -> super::access::Refusals {
        self.gate.refusals
    }
}

fn answer(socket: &mut impl Datagram, bytes: &[u8], envelope: &Envelope) -> io::Result<()> {
    loop {
        match socket.answer(bytes, envelope) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A UDP socket in the poll.
#[derive(Debug)]
pub(super) struct UdpPort {
    socket: UdpSocket,
    /// It is bound to all addresses, so each datagram has to tell to which it was sent.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    control: Option<Vec<u8>>,
}

impl UdpPort {
    /// Binds to `address`, with `token` in the poll of `registry`.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when the address is in use or needs a privilege (bind(2)).
    pub fn bind(address: SocketAddr, options: &SocketOptions, registry: &Registry, token: Token) -> io::Result<Self> {
        if is_for_many(address)? {
            let cause = "broadcast and multicast are not answered: listen on an address of this machine, or on 0.0.0.0";
            return Err(io::Error::new(ErrorKind::InvalidInput, cause));
        }
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        prepare(&socket, address, options)?;
        socket.bind(&address.into())?;
        UdpPort::inherited(socket.into(), registry, token)
    }

    /// Takes over a socket that is bound already.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left.
    pub fn inherited(socket: std::net::UdpSocket, registry: &Registry, token: Token) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let control = pktinfo::ask(&socket)?;
        let mut socket = UdpSocket::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(UdpPort {
            socket,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            control,
        })
    }

    /// Where it is bound, with the real port.
    ///
    /// # Errors
    ///
    /// What the kernel reports (getsockname(2)).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Whether datagrams to `address` go to many. Which addresses are for broadcast depends on the networks of this machine:
/// none can be connected to without SO_BROADCAST (connect(2), on EACCES). Nothing is sent by that.
fn is_for_many(address: SocketAddr) -> io::Result<bool> {
    if address.ip().is_unspecified() {
        return Ok(false);
    }
    if is_group(address.ip().to_canonical()) {
        return Ok(true);
    }
    let probe = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    let discard = SocketAddr::new(address.ip(), 9);
    Ok(
        matches!(probe.connect(&discard.into()), Err(error) if error.raw_os_error() == Some(Errno::ACCESS.raw_os_error())),
    )
}

impl Datagram for UdpPort {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(control) = &mut self.control {
            return self.socket.try_io(|| pktinfo::receive(&self.socket, into, control));
        }
        let (length, from) = self.socket.recv_from(into)?;
        Ok((length, Envelope { from, to: None, to_many: false }))
    }

    fn answer(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(to) = envelope.to {
            return self.socket.try_io(|| pktinfo::send(&self.socket, bytes, envelope.from, to));
        }
        self.socket.send_to(bytes, envelope.from).map(|_| ())
    }
}

/// Which of our addresses a datagram was sent to (ip(7), `IP_PKTINFO`; ipv6(7), `IPV6_PKTINFO`).
#[cfg(any(target_os = "linux", target_os = "android"))]
mod pktinfo {
    use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{AsFd, AsRawFd};

    use nix::libc;
    use nix::sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, cmsg_space, recvmsg, sendmsg, setsockopt,
        sockopt,
    };

    use super::super::access::is_group;
    use super::Envelope;

    /// Asks for it, where there can be several. Returns room for the answer.
    pub fn ask(socket: &std::net::UdpSocket) -> io::Result<Option<Vec<u8>>> {
        let address = socket.local_addr()?.ip();
        if !address.is_unspecified() {
            return Ok(None);
        }
        if address.is_ipv4() {
            setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket.as_fd(), sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Some(vec![0; cmsg_space::<libc::in6_pktinfo>() + cmsg_space::<libc::in_pktinfo>()]))
    }

    pub fn receive(socket: &impl AsRawFd, into: &mut [u8], control: &mut [u8]) -> io::Result<(usize, Envelope)> {
        let mut pieces = [IoSliceMut::new(into)];
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut pieces, Some(control), MsgFlags::empty())?;
        // Of IPv4, where it was sent, and by which address of ours it was taken in: they differ if it was sent to many.
        let to = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let to_many = info.ipi_addr.s_addr != info.ipi_spec_dst.s_addr;
                Some((IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()), to_many))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let to = IpAddr::from(info.ipi6_addr.s6_addr);
                Some((to, is_group(to.to_canonical())))
            }
            _ => None,
        });
        let from = message.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
        });
        let from = from.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a datagram without an address"))?;
        let (to, to_many) = to.map_or((None, false), |(to, to_many)| (Some(to), to_many));
        Ok((message.bytes, Envelope { from, to, to_many }))
    }

    pub fn send(socket: &impl AsRawFd, bytes: &[u8], destination: SocketAddr, source: IpAddr) -> io::Result<()> {
        let pieces = [IoSlice::new(bytes)];
        let destination = SockaddrStorage::from(destination);
        let (v4, v6);
        let control = match source {
            IpAddr::V4(source) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) };
                v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(source) => {
                v6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        sendmsg(socket.as_raw_fd(), &pieces, &[control], MsgFlags::empty(), Some(&destination))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::{AccessOptions, Refusal};
    use super::*;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::{cell::RefCell, num::NonZeroU32};

    /// A socket that follows a script: what arrives, and what sending says.
    #[derive(Default)]
    struct Script {
        arriving: VecDeque<io::Result<(Vec<u8>, u16)>>,
        answers: VecDeque<ErrorKind>,
        sent: Vec<(Vec<u8>, u16)>,
    }

    #[derive(Clone, Default)]
    struct Scripted(Rc<RefCell<Script>>);

    impl Datagram for Scripted {
        fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)> {
            let next = self.0.borrow_mut().arriving.pop_front();
            let (bytes, port) = next.unwrap_or(Err(ErrorKind::WouldBlock.into()))?;
            into[..bytes.len()].copy_from_slice(&bytes);
            Ok((bytes.len(), Envelope { from: SocketAddr::from(([127, 0, 0, 1], port)), to: None, to_many: false }))
        }

        fn answer(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()> {
            let mut script = self.0.borrow_mut();
            if let Some(error) = script.answers.pop_front() {
                return Err(error.into());
            }
            script.sent.push((bytes.to_vec(), envelope.from.port()));
            Ok(())
        }
    }

    fn world(access: &AccessOptions) -> (Datagrams<Scripted>, Scripted) {
        let socket = Scripted::default();
        (Datagrams::new(vec![(Token(3), socket.clone())], DatagramGate::new(access, vec![7777])), socket)
    }

    fn readable() -> Readiness {
        Readiness { token: Token(3), readable: true, writable: false, read_closed: false }
    }

    fn arrive(socket: &Scripted, datagrams: &[(&[u8], u16)]) {
        socket.0.borrow_mut().arriving.extend(datagrams.iter().map(|(bytes, port)| Ok((bytes.to_vec(), *port))));
    }

    fn turn(datagrams: &mut Datagrams<Scripted>) {
        datagrams.turn(Instant::now(), |_, _| {});
    }

    #[test]
    fn each_goes_back_whole_to_its_sender_the_empty_and_the_largest_too() {
        let (mut datagrams, socket) = world(&AccessOptions::default());
        let largest = vec![7; 65_507];
        let all = [(&b"one"[..], 5001), (b"", 5002), (&largest, 5003), (b"one", 5001)];
        arrive(&socket, &all);
        turn(&mut datagrams);
        assert_eq!(socket.0.borrow().sent, [], "no readiness, no call");
        assert!(datagrams.mark(&readable()));
        assert!(!datagrams.mark(&Readiness { token: Token(4), ..readable() }), "somebody else's");
        let mut seen = Vec::new();
        datagrams.turn(Instant::now(), |from, bytes| seen.push((bytes.to_vec(), from.port())));
        assert_eq!(socket.0.borrow().sent, all.map(|(bytes, port)| (bytes.to_vec(), port)));
        assert_eq!(seen, socket.0.borrow().sent);
        let counters = datagrams.counters();
        assert_eq!((counters.received, counters.sent, counters.bytes_in, counters.bytes_out), (4, 4, 65_513, 65_513));
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_errors_end_nothing() {
        let (mut datagrams, socket) = world(&AccessOptions::default());
        arrive(&socket, &[(b"a", 5000), (b"b", 5000)]);
        socket.0.borrow_mut().arriving.push_back(Err(ErrorKind::ConnectionRefused.into()));
        socket.0.borrow_mut().arriving.push_back(Err(ErrorKind::Interrupted.into()));
        arrive(&socket, &[(b"c", 5000), (b"d", 5000)]);
        let answers = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::NetworkUnreachable];
        socket.0.borrow_mut().answers.extend(answers);
        datagrams.mark(&readable());
        turn(&mut datagrams);
        assert_eq!(socket.0.borrow().sent, [(b"c".to_vec(), 5000), (b"d".to_vec(), 5000)]);
        let DatagramCounters { received, sent, dropped, failed, .. } = datagrams.counters();
        assert_eq!((received, sent, dropped, failed), (4, 2, 1, 1));
    }

    #[test]
    fn an_edge_is_owed_until_would_block_and_turns_have_a_budget() {
        let (mut datagrams, socket) = world(&AccessOptions::default());
        (0..BUDGET + 1).for_each(|_| arrive(&socket, &[(b"x", 5000)]));
        datagrams.mark(&readable());
        turn(&mut datagrams);
        assert_eq!((socket.0.borrow().sent.len(), datagrams.sleep()), (BUDGET, Some(Duration::ZERO)));
        turn(&mut datagrams);
        assert_eq!((socket.0.borrow().sent.len(), datagrams.sleep()), (BUDGET + 1, None));
        arrive(&socket, &[(b"last", 5000)]);
        datagrams.close(Instant::now(), |_, _| {});
        assert_eq!(socket.0.borrow().sent.last().unwrap().0, b"last", "what came before the end is answered");
        assert!(datagrams.is_closed());
    }

    #[test]
    fn those_that_might_answer_the_answer_and_those_beyond_their_rate_get_none() {
        let access = AccessOptions { datagram_rate: NonZeroU32::new(2), ..AccessOptions::default() };
        let (mut datagrams, socket) = world(&access);
        arrive(&socket, &[(b"dns", 53), (b"us", 7777), (b"1", 5000), (b"2", 5000), (b"3", 5000)]);
        datagrams.mark(&readable());
        turn(&mut datagrams);
        assert_eq!(socket.0.borrow().sent, [(b"1".to_vec(), 5000), (b"2".to_vec(), 5000)]);
        let refusals = datagrams.refusals();
        assert_eq!((refusals.of(Refusal::Loop), refusals.of(Refusal::Rate)), (2, 1));
    }
}
