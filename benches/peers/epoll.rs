//! Raw edge-triggered epoll, by hand: what an event loop can be without a library.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{SocketFlags, accept_with};
use slab::Slab;

struct Peer {
    socket: TcpStream,
    readable: bool,
    closed: bool,
    /// What a send did not take.
    unsent: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;

pub fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
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
                    entry.insert(Peer { socket: socket.into(), readable: false, closed: false, unsent: Vec::new() });
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
            match self.socket.read(buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => {
                    self.readable = count == buffer.len() || self.closed;
                    self.send(&buffer[..count])?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let taken = match self.socket.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            result => result?,
        };
        self.unsent.extend_from_slice(&bytes[taken..]);
        Ok(())
    }
}
