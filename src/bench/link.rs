//! What the load goes over: streams on the reactor, or datagrams.
//!
//! The driver opens slots, feeds them and gives them turns, whichever it is.

use std::io;
use std::time::{Duration, Instant};

use log::debug;

use super::clock::Nanos;
use super::load::{Load, Peer};
use super::machine::World;
use crate::reactor::{Datagrams, Reactor, Readiness, Settings, Source};

/// Bytes that are read at once, and from one connection before the others have their turn.
const READ_SIZE: usize = 256 * 1024;
const READ_BUDGET: usize = 1024 * 1024;

/// The sockets of all slots, and the load on them.
pub(super) enum Link<W: World> {
    Streams(Box<Reactor<W::Stream, Load>>),
    /// Their tokens begin at zero.
    Datagrams(Box<Datagrams<W::Port, Load>>),
}

impl<W: World> Link<W> {
    /// Sockets of the kind that is needed.
    pub fn new(datagrams: bool, mut load: Load) -> Self {
        load.late_is_error = !datagrams;
        if datagrams {
            Link::Datagrams(Box::new(Datagrams::new(load, 0)))
        } else {
            let settings =
                Settings { read_size: READ_SIZE, max_read_size: READ_SIZE, read_budget: READ_BUDGET, ..W::settings() };
            Link::Streams(Box::new(Reactor::new(load, settings)))
        }
    }

    pub fn load(&self) -> &Load {
        match self {
            Link::Streams(reactor) => reactor.protocol(),
            Link::Datagrams(datagrams) => datagrams.protocol(),
        }
    }

    pub fn load_mut(&mut self) -> &mut Load {
        match self {
            Link::Streams(reactor) => reactor.protocol_mut(),
            Link::Datagrams(datagrams) => datagrams.protocol_mut(),
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
            Link::Datagrams(datagrams) => {
                let mut target = None;
                let token = datagrams.add(|token| {
                    let (socket, address) = world.bind(index, token)?;
                    target = Some(address);
                    Ok(socket)
                })?;
                debug!("socket {index}: open");
                if let Some(target) = target {
                    datagrams.with(token, |load, outlet| load.open_port(index, target, outlet));
                }
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
            Link::Datagrams(datagrams) => {
                let token = datagrams.protocol().slots[index as usize].token;
                datagrams.with(token, |load, outlet| load.feed_port(outlet));
            }
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
            Link::Datagrams(datagrams) => {
                while let Some(token) = datagrams.protocol_mut().expire_port(now) {
                    datagrams.with(token, |load, outlet| load.feed_port(outlet));
                }
            }
        }
    }

    /// Serves what became ready.
    pub fn turn(&mut self, now: Instant, ready: &[Readiness]) {
        match self {
            Link::Streams(reactor) => reactor.turn_with(now, ready.iter().copied()),
            Link::Datagrams(datagrams) => datagrams.turn_with(now, ready.iter().copied()),
        }
    }

    /// How long the poll may sleep; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        match self {
            Link::Streams(reactor) => reactor.sleep(now),
            Link::Datagrams(datagrams) => datagrams.sleep(now),
        }
    }

    /// Whether there is no socket.
    pub fn is_empty(&self) -> bool {
        match self {
            Link::Streams(reactor) => reactor.is_empty(),
            Link::Datagrams(datagrams) => datagrams.is_empty(),
        }
    }

    /// Whether lost messages are part of the game, and no error.
    pub fn may_lose(&self) -> bool {
        matches!(self, Link::Datagrams(_))
    }
}
