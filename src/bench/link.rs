//! What the load goes over: streams on the reactor, or datagrams.
//!
//! The driver opens places, feeds them and gives them turns, whichever it is. This module knows sockets; it does not know
//! when anything is sent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Registry, Token};

use super::client::{LONGEST_DATAGRAM, Load};
use crate::reactor::address::Endpoint;
use crate::reactor::socket::Socket;
use crate::reactor::{Poller, Reactor, Readiness, Settings, Source};

/// The sockets of all places, and the load on them.
pub(super) enum Link {
    Streams(Box<Reactor<Socket, Load>>),
    Datagrams(Box<Ports>),
}

/// A UDP socket for each place.
pub(super) struct Ports {
    load: Load,
    sockets: Vec<Option<UdpSocket>>,
    /// Places at which there may be more than their turn allowed.
    owed: Vec<u32>,
    buffer: Box<[u8]>,
}

impl Link {
    /// Sockets of the kind that `target` needs.
    pub fn new(target: &Endpoint, load: Load) -> Self {
        match target {
            Endpoint::Udp(_) => {
                let sockets = load.places.iter().map(|_| None).collect();
                let buffer = vec![0; LONGEST_DATAGRAM].into_boxed_slice();
                Link::Datagrams(Box::new(Ports { load, sockets, owed: Vec::new(), buffer }))
            }
            _ => {
                let (read_size, read_budget) = (256 * 1024, 1024 * 1024);
                let settings = Settings { read_size, max_read_size: read_size, read_budget, ..Settings::default() };
                Link::Streams(Box::new(Reactor::new(load, settings)))
            }
        }
    }

    pub fn load(&self) -> &Load {
        match self {
            Link::Streams(reactor) => reactor.protocol(),
            Link::Datagrams(ports) => &ports.load,
        }
    }

    pub fn load_mut(&mut self) -> &mut Load {
        match self {
            Link::Streams(reactor) => reactor.protocol_mut(),
            Link::Datagrams(ports) => &mut ports.load,
        }
    }

    /// Begins to open a socket to `target` for a place.
    ///
    /// # Errors
    ///
    /// What the kernel reports at once.
    pub fn open(
        &mut self,
        index: u32,
        target: &Endpoint,
        source: Option<IpAddr>,
        registry: &Registry,
    ) -> io::Result<()> {
        match self {
            Link::Streams(reactor) => {
                let open = |token, load: &mut Load| {
                    let mut stream = match target {
                        Endpoint::Tcp(address) | Endpoint::Udp(address) => Socket::connect_tcp(*address, source)?,
                        Endpoint::Unix(path) => Socket::connect_unix(path)?,
                    };
                    registry.register(&mut stream, token, Poller::interest())?;
                    load.connecting(index, token);
                    Ok((stream, index))
                };
                reactor.connect(open).map(|_| ())
            }
            Link::Datagrams(ports) => {
                let (Endpoint::Udp(address) | Endpoint::Tcp(address)) = target else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                let mut socket = connect_udp(*address, source)?;
                let token = Token(index as usize);
                registry.register(&mut socket, token, Poller::interest())?;
                ports.sockets[index as usize] = Some(socket);
                ports.load.open_port(index, token);
                ports.feed(index);
                Ok(())
            }
        }
    }

    /// Lets a place send what it is to send now.
    pub fn feed(&mut self, index: u32) {
        match self {
            Link::Streams(reactor) => {
                let token = reactor.protocol().places[index as usize].token;
                reactor.with(token, |load, transport, _| load.feed(transport, index));
            }
            Link::Datagrams(ports) => ports.feed(index),
        }
    }

    /// Gives up what has taken longer than `timeout`.
    pub fn expire(&mut self, timeout: Duration) {
        match self {
            Link::Streams(reactor) => {
                for token in reactor.protocol_mut().expire(timeout) {
                    reactor.abort(token);
                }
            }
            Link::Datagrams(ports) => {
                for index in ports.load.expire_datagrams(timeout) {
                    ports.feed(index);
                }
            }
        }
    }

    /// Serves what became ready.
    pub fn turn(&mut self, now: Instant, ready: impl Iterator<Item = Readiness>) {
        match self {
            Link::Streams(reactor) => reactor.turn_with(now, ready),
            Link::Datagrams(ports) => ports.turn(ready),
        }
    }

    /// How long the poll may sleep; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        match self {
            Link::Streams(reactor) => reactor.sleep(now),
            Link::Datagrams(ports) => (!ports.owed.is_empty()).then_some(Duration::ZERO),
        }
    }

    /// Whether there is no socket.
    pub fn is_empty(&self) -> bool {
        match self {
            Link::Streams(reactor) => reactor.is_empty(),
            Link::Datagrams(ports) => ports.sockets.iter().all(Option::is_none),
        }
    }
}

impl Ports {
    fn feed(&mut self, index: u32) {
        let slot = &mut self.sockets[index as usize];
        if let Some(socket) = slot
            && !self.load.feed_port(index, socket, &mut self.buffer)
        {
            *slot = None;
        }
    }

    fn turn(&mut self, ready: impl Iterator<Item = Readiness>) {
        let mut places = std::mem::take(&mut self.owed);
        // A place that was left over may be ready again too: then it has two turns, which does no harm.
        places.extend(ready.map(|readiness| readiness.token.0 as u32));
        for index in places {
            let Some(slot) = self.sockets.get_mut(index as usize) else { continue };
            let Some(socket) = slot else { continue };
            let (usable, more) = self.load.receive_port(index, socket, &mut self.buffer);
            if !usable {
                *slot = None;
                continue;
            }
            if more {
                self.owed.push(index);
            }
            self.feed(index);
        }
    }
}

/// A UDP socket that is connected to `target` from `source`.
fn connect_udp(target: SocketAddr, source: Option<IpAddr>) -> io::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0))?;
    socket.connect(target)?;
    // The system may have given the socket the very port that it is to send to. Nobody listens there then.
    if socket.local_addr()? == target {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(socket)
}
