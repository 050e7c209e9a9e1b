//! The one test double: sockets, listeners and datagram sockets that follow a script.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use mio::Token;
use rustix::io::Errno;

use super::acceptor::Listen;
use super::datagrams::{DatagramSocket, Envelope};
use super::socket::Origin;
use super::source::Readiness;
use super::stream::Stream;

/// What one call to `read` or `write` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// At most so many bytes.
    Take(usize),
    WouldBlock,
    Interrupted,
    Reset,
    /// The end of the stream.
    End,
    Fail(Errno),
}

/// What happened to a socket, and what is to happen.
pub(crate) struct Script {
    /// What the next reads and writes answer. Once that is over, a read takes what is `incoming`, and a write everything
    /// that there is `room` for.
    pub reads: VecDeque<Answer>,
    pub writes: VecDeque<Answer>,
    pub incoming: VecDeque<u8>,
    /// The peer has closed its side behind what is incoming.
    pub end: bool,
    pub room: usize,
    /// The bytes that were read and written. A read that answers more than is incoming counts up from 0 and wraps, so that
    /// a lost, repeated or swapped byte shows.
    pub read: Vec<u8>,
    pub written: Vec<u8>,
    pub read_calls: usize,
    pub write_calls: usize,
    pub shut: bool,
    pub shutdown_fails: bool,
    pub established: Option<ErrorKind>,
    pub connecting: bool,
    /// A short read or write says that there is no more.
    pub conclusive: bool,
    pub reset: bool,
    pub dropped: bool,
}

/// The test's end of a scripted socket.
#[derive(Clone)]
pub(crate) struct Wire(pub Rc<RefCell<Script>>);

/// The program's end: dropping it is what close(2) is.
pub(crate) struct Scripted(Wire);

impl Default for Wire {
    fn default() -> Self {
        Wire(Rc::new(RefCell::new(Script {
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            incoming: VecDeque::new(),
            end: false,
            room: usize::MAX,
            read: Vec::new(),
            written: Vec::new(),
            read_calls: 0,
            write_calls: 0,
            shut: false,
            shutdown_fails: false,
            established: None,
            connecting: false,
            conclusive: true,
            reset: false,
            dropped: false,
        })))
    }
}

impl Wire {
    /// The program's end of it.
    pub fn socket(&self) -> Scripted {
        Scripted(self.clone())
    }

    pub fn reads(&self, answers: &[Answer]) -> &Self {
        self.0.borrow_mut().reads.extend(answers);
        self
    }

    pub fn writes(&self, answers: &[Answer]) -> &Self {
        self.0.borrow_mut().writes.extend(answers);
        self
    }

    /// Bytes arrive.
    pub fn arrive(&self, bytes: &[u8]) {
        self.0.borrow_mut().incoming.extend(bytes);
    }

    /// The peer closes its side.
    pub fn end(&self) {
        self.0.borrow_mut().end = true;
    }

    pub fn written(&self) -> Vec<u8> {
        self.0.borrow().written.clone()
    }

    /// Calls of `read` and `write` so far.
    pub fn calls(&self) -> (usize, usize) {
        let script = self.0.borrow();
        (script.read_calls, script.write_calls)
    }

    /// Asserts that everything read so far has been written, and how much that was.
    #[track_caller]
    pub fn assert_echoed(&self, count: usize) {
        let script = self.0.borrow();
        assert_eq!(script.written, script.read);
        assert_eq!(script.written.len(), count);
    }

    pub fn dropped(&self) -> bool {
        self.0.borrow().dropped
    }

    pub fn shut(&self) -> bool {
        self.0.borrow().shut
    }

    pub fn reset(&self) -> bool {
        self.0.borrow().reset
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.0.0.borrow_mut().dropped = true;
    }
}

impl Read for Scripted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let script = &mut *self.0.0.borrow_mut();
        script.read_calls += 1;
        let answer = script.reads.pop_front().unwrap_or(match script.incoming.len() {
            0 if script.end => Answer::End,
            0 => Answer::WouldBlock,
            some => Answer::Take(some),
        });
        match answer {
            Answer::Take(count) => {
                let count = count.clamp(1, into.len());
                for slot in &mut into[..count] {
                    *slot = script.incoming.pop_front().unwrap_or(script.read.len() as u8);
                    script.read.push(*slot);
                }
                Ok(count)
            }
            Answer::WouldBlock => Err(ErrorKind::WouldBlock.into()),
            Answer::Interrupted => Err(ErrorKind::Interrupted.into()),
            Answer::Reset => Err(ErrorKind::ConnectionReset.into()),
            Answer::End => Ok(0),
            Answer::Fail(error) => Err(error.into()),
        }
    }
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let script = &mut *self.0.0.borrow_mut();
        assert!(!script.shut, "written after shutdown");
        script.write_calls += 1;
        let room = if script.room == 0 { Answer::WouldBlock } else { Answer::Take(script.room) };
        match script.writes.pop_front().unwrap_or(room) {
            Answer::Take(count) => {
                let count = count.clamp(1, bytes.len());
                script.room = script.room.saturating_sub(if script.room == usize::MAX { 0 } else { count });
                script.written.extend(&bytes[..count]);
                Ok(count)
            }
            Answer::WouldBlock => Err(ErrorKind::WouldBlock.into()),
            Answer::Interrupted => Err(ErrorKind::Interrupted.into()),
            Answer::Reset | Answer::End => Err(ErrorKind::BrokenPipe.into()),
            Answer::Fail(error) => Err(error.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Scripted {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let script = &mut *self.0.0.borrow_mut();
        if script.shutdown_fails {
            return Err(ErrorKind::NotConnected.into());
        }
        script.shut = true;
        Ok(())
    }

    fn established(&mut self) -> io::Result<bool> {
        let script = self.0.0.borrow();
        script.established.map_or(Ok(!script.connecting), |kind| Err(kind.into()))
    }

    fn reset_on_drop(&mut self) {
        self.0.0.borrow_mut().reset = true;
    }

    fn short_read_is_conclusive(&self) -> bool {
        self.0.0.borrow().conclusive
    }

    fn short_write_is_conclusive(&self) -> bool {
        self.0.0.borrow().conclusive
    }
}

/// A listener: its backlog, and what accept says instead.
#[derive(Default)]
pub(crate) struct Backlog {
    pub waiting: VecDeque<Wire>,
    pub errors: VecDeque<Errno>,
    /// Say EMFILE whenever so many connections are open, whether or not anybody waits, as Linux does.
    pub descriptors: Option<usize>,
    /// The connections that were accepted, in that order.
    pub open: Vec<Wire>,
    pub calls: usize,
    pub closed: bool,
}

#[derive(Clone, Default)]
pub(crate) struct ScriptedListener(pub Rc<RefCell<Backlog>>);

impl Listen for ScriptedListener {
    type Stream = Scripted;

    fn accept(&mut self, _: Token) -> io::Result<(Scripted, Origin)> {
        let mut backlog = self.0.borrow_mut();
        backlog.calls += 1;
        if let Some(error) = backlog.errors.pop_front() {
            return Err(error.into());
        }
        backlog.open.retain(|wire| !wire.dropped());
        if backlog.descriptors.is_some_and(|limit| backlog.open.len() >= limit) {
            return Err(Errno::MFILE.into());
        }
        let wire = backlog.waiting.pop_front().ok_or(ErrorKind::WouldBlock)?;
        backlog.open.push(wire.clone());
        Ok((wire.socket(), Origin::Unix))
    }

    fn close_backlog(&mut self) -> usize {
        self.0.borrow_mut().closed = true;
        self.0.borrow().waiting.len()
    }
}

impl ScriptedListener {
    /// So many peers connect.
    pub fn queue(&self, count: usize) {
        self.0.borrow_mut().waiting.extend((0..count).map(|_| Wire::default()));
    }

    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting.len()
    }

    /// Calls of `accept` since this was last asked.
    pub fn calls(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().calls)
    }

    pub fn open(&self) -> Vec<Wire> {
        self.0.borrow().open.clone()
    }
}

/// A datagram socket: what arrives, and what sending says.
#[derive(Default)]
pub(crate) struct Post {
    /// How many may wait, as far as it is known.
    pub max_queued: Option<usize>,
    pub arriving: VecDeque<io::Result<(Vec<u8>, SocketAddr)>>,
    /// An error that every receive says.
    pub fails: Option<Errno>,
    /// What the next sends say; after that, all are taken.
    pub answers: VecDeque<Result<(), ErrorKind>>,
    pub sent: Vec<(Vec<u8>, SocketAddr)>,
    pub receives: usize,
}

#[derive(Clone, Default)]
pub(crate) struct ScriptedPort(pub Rc<RefCell<Post>>);

impl ScriptedPort {
    /// Datagrams arrive from these ports of this machine.
    pub fn arrive(&self, datagrams: &[(&[u8], u16)]) {
        let from = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let arriving = datagrams.iter().map(|(bytes, port)| Ok((bytes.to_vec(), from(*port))));
        self.0.borrow_mut().arriving.extend(arriving);
    }

    /// What was sent, and to which ports.
    pub fn sent(&self) -> Vec<(Vec<u8>, u16)> {
        self.0.borrow().sent.iter().map(|(bytes, to)| (bytes.clone(), to.port())).collect()
    }
}

impl DatagramSocket for ScriptedPort {
    fn max_queued(&self) -> usize {
        self.0.borrow().max_queued.unwrap_or(usize::MAX)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)> {
        let mut post = self.0.borrow_mut();
        post.receives += 1;
        if let Some(error) = post.fails {
            return Err(error.into());
        }
        let (bytes, from) = post.arriving.pop_front().unwrap_or(Err(ErrorKind::WouldBlock.into()))?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok((bytes.len(), Envelope::from(from)))
    }

    fn send(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()> {
        let mut post = self.0.borrow_mut();
        if let Some(answer) = post.answers.pop_front() {
            answer?;
        }
        post.sent.push((bytes.to_vec(), envelope.from));
        Ok(())
    }
}

/// A token of which nothing is ready.
pub(crate) fn nothing(token: Token) -> Readiness {
    Readiness { token, readable: false, writable: false, read_closed: false, urgent: false }
}

pub(crate) fn readable(token: Token) -> Readiness {
    Readiness { readable: true, ..nothing(token) }
}

pub(crate) fn writable(token: Token) -> Readiness {
    Readiness { writable: true, ..nothing(token) }
}

pub(crate) fn read_closed(token: Token) -> Readiness {
    Readiness { readable: true, read_closed: true, ..nothing(token) }
}
