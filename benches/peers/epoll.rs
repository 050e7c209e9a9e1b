//! Raw edge-triggered epoll, by hand: what an event loop can be without a library.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, recvfrom, send, sendto};
use slab::Slab;

use crate::listening::Listening;

struct Peer {
    socket: OwnedFd,
    /// A read that leaves room proves that nothing more has come. On a Unix socket it may end behind bytes that carry
    /// descriptors (unix(7)).
    short_is_conclusive: bool,
    readable: bool,
    closed: bool,
    /// What a send did not take.
    unsent: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;

pub fn serve(listening: Listening) -> io::Result<Infallible> {
    let (listener, tcp): (OwnedFd, _) = match listening.nonblocking()? {
        Listening::Tcp(listener) => (listener.into(), true),
        Listening::Unix(listener) => (listener.into(), false),
        Listening::Udp(socket) => return datagrams(&socket),
    };
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &listener, EventData::new_u64(LISTENER), EventFlags::IN | EventFlags::ET)?;
    let mut peers: Slab<Peer> = Slab::new();
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let (key, flags) = (event.data.u64(), event.flags);
            if key == LISTENER {
                while let Ok(socket) = accept_with(&listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    let entry = peers.vacant_entry();
                    let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                    epoll::add(&poll, &socket, EventData::new_u64(entry.key() as u64), interest)?;
                    let (readable, closed, unsent) = (false, false, Vec::new());
                    entry.insert(Peer { socket, short_is_conclusive: tcp, readable, closed, unsent });
                }
                continue;
            }
            let Some(peer) = peers.get_mut(key as usize) else { continue };
            peer.readable |= flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR);
            peer.closed |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
            if matches!(peer.echo(&mut buffer), Ok(true) | Err(_)) {
                peers.remove(key as usize);
            }
        }
    }
}

impl Peer {
    /// Sends and receives as far as it goes. Returns whether the peer has closed its side.
    fn echo(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let unsent = std::mem::take(&mut self.unsent);
        self.send(&unsent)?;
        while self.readable && self.unsent.is_empty() {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Ok(true),
                Ok((count, _)) => {
                    self.readable = count == buffer.len() || self.closed || !self.short_is_conclusive;
                    self.send(&buffer[..count])?;
                }
                Err(Errno::WOULDBLOCK) => self.readable = false,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let taken = match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::WOULDBLOCK) => 0,
            result => result?,
        };
        self.unsent.extend_from_slice(&bytes[taken..]);
        Ok(())
    }
}

/// One datagram after the other until there is none; one for which there is no room is lost, as anywhere on its way.
fn datagrams(socket: &UdpSocket) -> io::Result<Infallible> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poll, socket, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
    let mut events = Vec::with_capacity(8);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        events.clear();
        while let Ok((count, _, Some(from))) = recvfrom(socket.as_fd(), &mut *buffer, RecvFlags::empty()) {
            let from = SocketAddr::try_from(from)?;
            let _ = sendto(socket.as_fd(), &buffer[..count], SendFlags::empty(), &from);
        }
    }
}
