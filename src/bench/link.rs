//! What the load goes over: streams on the reactor, or datagrams.
//!
//! The driver opens slots, feeds them and gives them turns, whichever it is.

use std::io;
use std::time::{Duration, Instant};

use mio::Token;

use super::clock::Nanos;
use super::load::{Load, MAX_DATAGRAM, Peer, Port};
use super::machine::World;
use crate::reactor::{Reactor, Readiness, Settings, Source};

/// Bytes that are read at once, and from one connection before the others have their turn.
const READ_SIZE: usize = 256 * 1024;
const READ_BUDGET: usize = 1024 * 1024;

/// The sockets of all slots, and the load on them.
pub(super) enum Link<W: World> {
    Streams(Box<Reactor<W::Stream, Load>>),
    Datagrams(Box<Ports<W::Port>>),
}

/// A UDP socket for each slot.
pub(super) struct Ports<P> {
    load: Load,
    sockets: Vec<Option<P>>,
    /// Slots at which there may be more than their turn allowed, to receive or to send; and whether a slot is among them.
    ready: Vec<u32>,
    queued: Vec<bool>,
    buffer: Box<[u8]>,
}

impl<W: World> Link<W> {
    /// Sockets of the kind that is needed.
    pub fn new(datagrams: bool, mut load: Load) -> Self {
        load.late_is_error = !datagrams;
        if datagrams {
            let sockets = load.slots.iter().map(|_| None).collect();
            let queued = vec![false; load.slots.len()];
            let buffer = vec![0; MAX_DATAGRAM].into_boxed_slice();
            Link::Datagrams(Box::new(Ports { load, sockets, ready: Vec::new(), queued, buffer }))
        } else {
            let settings =
                Settings { read_size: READ_SIZE, max_read_size: READ_SIZE, read_budget: READ_BUDGET, ..W::settings() };
            Link::Streams(Box::new(Reactor::new(load, settings)))
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

    /// Begins to open a socket for a slot.
    ///
    /// # Errors
    ///
    /// What the kernel reports at once.
    pub fn open(&mut self, index: u32, world: &mut W) -> io::Result<()> {
        match self {
            Link::Streams(reactor) => {
                let open = |token, load: &mut Load| {
                    // What connect(2) itself takes is of the connect's time.
                    let since = load.clock.read();
                    let stream = world.dial(index, token)?;
                    load.connecting(index, token, since);
                    Ok((stream, Peer::of(index)))
                };
                reactor.connect(open).map(|_| ())
            }
            Link::Datagrams(ports) => {
                let token = Token(index as usize);
                ports.sockets[index as usize] = Some(world.bind(index, token)?);
                ports.load.open_port(index, token);
                ports.feed(index);
                Ok(())
            }
        }
    }

    /// Lets a slot send what it is to send now.
    pub fn feed(&mut self, index: u32) {
        match self {
            Link::Streams(reactor) => {
                let token = reactor.protocol().slots[index as usize].token;
                reactor.with(token, |load, transport, _| load.feed(transport, index));
            }
            Link::Datagrams(ports) => ports.feed(index),
        }
    }

    /// Gives up what has taken too long at `now`.
    pub fn expire(&mut self, now: Nanos) {
        match self {
            Link::Streams(reactor) => {
                while let Some(token) = reactor.protocol_mut().expire(now) {
                    reactor.abort(token);
                }
            }
            Link::Datagrams(ports) => {
                while let Some(index) = ports.load.expire_port(now) {
                    ports.feed(index);
                }
            }
        }
    }

    /// Serves what became ready.
    pub fn turn(&mut self, now: Instant, ready: &[Readiness]) {
        match self {
            Link::Streams(reactor) => reactor.turn_with(now, ready.iter().copied()),
            Link::Datagrams(ports) => ports.turn(ready),
        }
    }

    /// How long the poll may sleep; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        match self {
            Link::Streams(reactor) => reactor.sleep(now),
            Link::Datagrams(ports) => (!ports.ready.is_empty()).then_some(Duration::ZERO),
        }
    }

    /// Whether there is no socket.
    pub fn is_empty(&self) -> bool {
        match self {
            Link::Streams(reactor) => reactor.is_empty(),
            Link::Datagrams(ports) => ports.sockets.iter().all(Option::is_none),
        }
    }

    /// Whether lost messages are part of the game, and no error.
    pub fn may_lose(&self) -> bool {
        matches!(self, Link::Datagrams(_))
    }
}

impl<P: Port> Ports<P> {
    fn feed(&mut self, index: u32) {
        if let Some(socket) = &mut self.sockets[index as usize]
            && self.load.feed_port(index, socket, &mut self.buffer)
        {
            self.queue(index);
        }
    }

    fn queue(&mut self, index: u32) {
        if !std::mem::replace(&mut self.queued[index as usize], true) {
            self.ready.push(index);
        }
    }

    fn turn(&mut self, ready: &[Readiness]) {
        let mut slots = std::mem::take(&mut self.ready);
        slots.iter().for_each(|&index| self.queued[index as usize] = false);
        // A slot that was left over may be ready again too: then it has two turns, which does no harm.
        slots.extend(ready.iter().map(|readiness| readiness.token.0 as u32));
        for index in slots {
            let Some(Some(socket)) = self.sockets.get_mut(index as usize) else { continue };
            if self.load.receive_port(index, socket, &mut self.buffer) {
                self.queue(index);
            }
            self.feed(index);
        }
    }
}
