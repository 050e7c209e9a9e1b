//! The model of the kernel: sockets whose state is known, edges, and calls that fail.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::Token;
use rustix::io::Errno;

use crate::reactor::datagrams::{DatagramSocket, Envelope};
use crate::reactor::scripted::nothing;
use crate::reactor::socket::Origin;
use crate::reactor::{Listen, Readiness, Settings, Stream};
use crate::simulation::tape::Tape;

/// A call that may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
    Shutdown,
    Accept,
    Receive,
    Send,
}

impl Call {
    pub const ALL: [Call; 6] = [Call::Read, Call::Write, Call::Shutdown, Call::Accept, Call::Receive, Call::Send];

    /// What Linux says it may fail with: recv(2), send(2), shutdown(2), accept(2), and epoll_ctl(2) for a peer that cannot be
    /// registered; tcp(7), ip(7) and udp(7).
    pub fn errnos(self) -> &'static [Errno] {
        use rustix::io::Errno as E;
        match self {
            Call::Read | Call::Receive => &[
                E::AGAIN,
                E::BADF,
                E::CONNREFUSED,
                E::CONNRESET,
                E::FAULT,
                E::HOSTUNREACH,
                E::INTR,
                E::INVAL,
                E::IO,
                E::NETDOWN,
                E::NOBUFS,
                E::NOMEM,
                E::NOTCONN,
                E::NOTSOCK,
                E::PERM,
                E::PIPE,
                E::TIMEDOUT,
            ],
            Call::Write | Call::Send => &[
                E::ACCESS,
                E::AGAIN,
                E::ALREADY,
                E::BADF,
                E::CONNREFUSED,
                E::CONNRESET,
                E::DESTADDRREQ,
                E::FAULT,
                E::HOSTUNREACH,
                E::INTR,
                E::INVAL,
                E::ISCONN,
                E::MSGSIZE,
                E::NETUNREACH,
                E::NOBUFS,
                E::NOMEM,
                E::NOTCONN,
                E::NOTSOCK,
                E::OPNOTSUPP,
                E::PERM,
                E::PIPE,
                E::TIMEDOUT,
            ],
            Call::Shutdown => &[E::BADF, E::INVAL, E::NOTCONN, E::NOTSOCK],
            Call::Accept => &[
                E::AGAIN,
                E::BADF,
                E::CONNABORTED,
                E::FAULT,
                E::HOSTDOWN,
                E::HOSTUNREACH,
                E::INTR,
                E::INVAL,
                E::MFILE,
                E::NETDOWN,
                E::NETUNREACH,
                E::NFILE,
                E::NOBUFS,
                E::NOMEM,
                E::NOPROTOOPT,
                E::NOSPC,
                E::NOTSOCK,
                E::OPNOTSUPP,
                E::PERM,
                E::PROTO,
                E::TIMEDOUT,
            ],
        }
    }
}

/// A call that fails, and what with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub call: Call,
    pub errno: Errno,
    /// The first that fails, counted from 1; it is the only one unless `for_ever`.
    pub first: u64,
    pub for_ever: bool,
}

/// Who is at the other end of a connection, and of which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Echo,
    Http,
}

/// One connection, as the kernel and the peer have it.
pub(super) struct Wire {
    pub number: u64,
    pub kind: Kind,
    pub origin: Origin,
    /// What comes before the pattern: a PROXY header; over HTTP, all that is sent.
    pub head: Vec<u8>,
    /// The address that the header tells; none if it is no header.
    pub speaks_for: Option<IpAddr>,
    pub header_is_bad: bool,
    /// Where whole requests end, and what has been answered.
    pub requests: Vec<u64>,
    pub answer: Vec<u8>,
    /// Bytes that the peer has sent, that the server has read, that it has sent back, that the peer has received.
    pub sent: u64,
    pub read: u64,
    pub echoed: u64,
    pub received: u64,
    /// What it had read when the turn began, and whether it had been accepted.
    pub read_before: u64,
    pub known: bool,
    /// What it must have sent back before it says that this was all: a stop echoes what had arrived by then.
    pub due: u64,
    /// The sizes of the kernel's buffers.
    pub receive_buffer: u64,
    pub send_buffer: u64,
    /// Where a read ends, whatever follows: the urgent byte (tcp(7)); behind each piece, over a socket that keeps them
    /// apart (unix(7)).
    pub urgent: Option<u64>,
    pub pieces: Option<VecDeque<u64>>,
    /// The peer has closed its side; has reset the connection; will do nothing more.
    pub ended: bool,
    pub reset: bool,
    pub vanished: bool,
    /// Its last read proved that there was no more, and no event has come since. An event has said that a short read
    /// proves nothing, and no read has said WouldBlock since.
    pub known_drained: bool,
    pub hinted: bool,
    /// It waited in a backlog when the service was told to stop.
    pub promised: bool,
    /// A call on it has failed.
    pub failed: bool,
    /// The server has seen the end; has closed its side; has closed the socket.
    pub end_read: bool,
    pub shut: bool,
    pub closed: bool,
    /// The server has told the peer, by a reset, that bytes are missing.
    pub aborted: bool,
    /// It must not come in; it may, and counts.
    pub refused: bool,
    pub admitted: bool,
    pub accepted_at: Option<Instant>,
    pub shut_at: Option<Instant>,
    /// Its key in the service; the poll has something to tell about it; a send found the buffer full.
    pub token: Option<Token>,
    pub armed: bool,
    pub no_space: bool,
    /// When a byte last moved between the server and its socket, and when one did that was sent.
    pub moved_at: Option<Instant>,
    pub sent_at: Option<Instant>,
    /// When the server last found nothing to read, or no room to write.
    pub blocked_at: Option<Instant>,
}

impl Wire {
    pub fn new(number: u64, kind: Kind, origin: Origin) -> Self {
        Wire {
            number,
            kind,
            origin,
            head: Vec::new(),
            speaks_for: None,
            header_is_bad: false,
            requests: Vec::new(),
            answer: Vec::new(),
            sent: 0,
            read: 0,
            echoed: 0,
            received: 0,
            read_before: 0,
            known: false,
            due: 0,
            receive_buffer: 1 << 16,
            send_buffer: 1 << 16,
            urgent: None,
            pieces: None,
            ended: false,
            reset: false,
            vanished: false,
            known_drained: false,
            hinted: false,
            promised: false,
            failed: false,
            end_read: false,
            shut: false,
            closed: false,
            aborted: false,
            refused: false,
            admitted: false,
            accepted_at: None,
            shut_at: None,
            token: None,
            armed: false,
            no_space: false,
            moved_at: None,
            sent_at: None,
            blocked_at: None,
        }
    }

    pub fn unread(&self) -> u64 {
        self.sent - self.read
    }

    /// Bytes of the pattern among so many.
    pub fn payload(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.head.len() as u64)
    }

    pub fn owed(&self) -> u64 {
        if self.admitted { self.payload(self.read) - self.echoed } else { 0 }
    }

    pub fn free(&self) -> u64 {
        self.send_buffer - (self.echoed - self.received)
    }

    pub fn is_open(&self) -> bool {
        self.token.is_some() && !self.closed
    }

    /// Whether the peer can still do something.
    pub fn is_present(&self) -> bool {
        !self.closed && !self.vanished
    }

    /// What the limits count it by.
    pub fn source(&self) -> Option<IpAddr> {
        self.speaks_for.or_else(|| self.origin.ip())
    }

    /// Sends as many bytes as there is room for, and returns how many.
    pub fn send(&mut self, count: u64) -> u64 {
        let count = count.min(self.receive_buffer.saturating_sub(self.unread()));
        if count == 0 || self.ended || self.reset {
            return 0;
        }
        self.sent += count;
        self.armed = true;
        if let Some(pieces) = &mut self.pieces {
            pieces.push_back(self.sent);
        }
        count
    }

    pub fn receive(&mut self, count: u64) -> u64 {
        let count = count.min(self.echoed - self.received);
        self.received += count;
        self.look_for_room();
        count
    }

    /// The server was told that the buffer is full. It is told when that is over; which may be now, if it was not so.
    pub fn full(&mut self, now: Instant) {
        self.no_space = true;
        self.blocked_at = Some(now);
        self.look_for_room();
    }

    fn look_for_room(&mut self) {
        if self.no_space && self.is_writable() {
            self.no_space = false;
            self.armed = true;
        }
    }

    fn is_writable(&self) -> bool {
        self.reset || self.free() * 3 >= self.send_buffer
    }

    pub fn end(&mut self) {
        self.armed |= !self.ended && !self.reset;
        self.ended = true;
    }

    pub fn reset(&mut self) {
        self.armed |= !self.reset;
        self.reset = true;
    }

    /// Requests that have been read whole.
    pub fn asked(&self) -> usize {
        self.requests.iter().filter(|&&end| end <= self.read).count()
    }

    /// Requests whose answer has begun.
    pub fn answered(&self) -> usize {
        memchr::memmem::find_iter(&self.answer, b"HTTP/1.1 ").count()
    }

    /// An event is told.
    pub fn note(&mut self, readiness: &Readiness) {
        self.known_drained = false;
        self.hinted |= readiness.read_closed || readiness.urgent;
    }

    fn readiness(&self, token: Token) -> Readiness {
        let gone = self.ended || self.reset;
        Readiness {
            token,
            readable: gone || self.unread() > 0,
            writable: self.is_writable(),
            read_closed: gone,
            urgent: self.urgent.is_some(),
        }
    }
}

/// The bytes that all peers send, each from a place of its own: a block of a prime length, repeated. It is full of
/// newlines and beginnings of the terminator, which is in it as a message here and there.
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    const PERIOD: u64 = 65_521;

    pub fn new() -> Self {
        let mut rng = fastrand::Rng::with_seed(0);
        let block: Vec<u8> = (0..Self::PERIOD).map(|_| rng.choice(*b"bye\nBY\r-").unwrap()).collect();
        let again = block.len() + Settings::default().max_read_size;
        Pattern(block.into_iter().cycle().take(again).collect())
    }

    /// `length` bytes of a connection from `position` on; at most one read.
    pub fn piece(&self, number: u64, position: u64, length: usize) -> &[u8] {
        let at = ((number * 40_503 + position) % Self::PERIOD) as usize;
        &self.0[at..at + length]
    }
}

/// A listening socket.
pub(super) struct Backlog {
    pub kind: Kind,
    pub token: Token,
    pub waiting: VecDeque<usize>,
    pub armed: bool,
    pub listening: bool,
    /// Nobody gets in any more.
    pub closed: bool,
    /// An error that stays.
    pub fails: Option<Errno>,
    /// When the last accept failed, and how many connections there were; whether that was for want of something.
    pub refused: Option<(Instant, usize, bool)>,
}

/// A datagram socket.
#[derive(Default)]
pub(super) struct Post {
    pub token: Option<Token>,
    pub armed: bool,
    /// What has arrived: its number, and whom from. Its bytes are the number, repeated.
    pub waiting: VecDeque<(u32, Envelope)>,
    pub fails: Option<Errno>,
    /// A receive failed, and none has succeeded since.
    pub failed: bool,
    pub full: bool,
    /// How often each was received, and answered.
    pub received: Vec<u32>,
    pub answered: Vec<u32>,
    pub open: bool,
}

pub(super) fn datagram(number: u32) -> Vec<u8> {
    number.to_be_bytes().repeat(number as usize % 5)
}

/// Who may come in, as it is understood here.
#[derive(Default)]
pub(super) struct Rules {
    pub proxied: bool,
    pub denied: Option<IpAddr>,
    pub per_source: Option<usize>,
    pub rate: Option<usize>,
    pub admitted: u64,
}

/// Declares what is counted once.
macro_rules! tally {
    ($($(#[doc = $meaning:literal])* $field:ident,)+) => {
        /// What was done to the service, over all runs.
        #[derive(Debug, Clone, Copy, Default)]
        pub(super) struct Tally {
            $($(#[doc = $meaning])* pub $field: u64,)+
        }

        impl Tally {
            pub fn add(&mut self, other: &Tally) {
                $(self.$field += other.$field;)+
            }

            /// What was counted never or rarely: a simulation in which that does not happen would find nothing.
            pub fn rare(&self, least: u64) -> Vec<&'static str> {
                [$((stringify!($field), self.$field)),+].into_iter().filter(|it| it.1 < least).map(|it| it.0).collect()
            }
        }
    };
}

tally! {
    /// Runs.
    runs,
    turns,
    connections,
    /// Bytes read.
    bytes,
    /// Sends that took a part, and reads that said WouldBlock.
    partial_sends,
    would_blocks,
    /// Calls that were interrupted, accepts that failed, and other calls that failed as they were told to.
    interrupts,
    accept_failures,
    /// Connections that were reset; peers that closed their side, or vanished.
    resets,
    half_closes,
    vanished,
    /// Events that were not so.
    stale_events,
    urgent,
    /// Requests over HTTP, PROXY headers, peers that were not let in.
    requests,
    headers,
    refused,
    datagrams,
    /// Connections closed as idle, and after a message.
    idle_closes,
    farewells,
    /// Stops, and connections that came in between a stop and the end of its delay.
    stops,
    came_during_delay,
}

/// A call that is interrupted so often in a row has failed.
const MAX_INTERRUPTS: u32 = 100;

/// The kernel.
pub(super) struct Kernel {
    pub tape: Tape,
    pub pattern: Rc<Pattern>,
    pub now: Instant,
    pub began: Instant,
    pub wires: Vec<Wire>,
    pub backlogs: Vec<Backlog>,
    pub post: Post,
    pub rules: Rules,
    /// When connections came in, of the last second.
    pub entered: Vec<Instant>,
    pub descriptors: usize,
    /// Nobody is asked without an event: there is no idle timeout, and no stop.
    pub frugal: bool,
    /// Somebody was promised to be served, and was dropped from the backlog.
    pub broken_promise: bool,
    /// Calls are interrupted, accepts fail, and bytes move while the server is in a call.
    pub willing: bool,
    pub fault: Option<Fault>,
    /// How often each call was made, and how many in a row were interrupted in this turn.
    pub calls: [u64; Call::ALL.len()],
    pub interrupted: u32,
    /// Grows with everything that gets on.
    pub progress: u64,
    pub tally: Tally,
    /// What happens, if it is to be told.
    pub told: Option<Vec<String>>,
}

impl Kernel {
    pub fn new(tape: Tape, pattern: &Rc<Pattern>, fault: Option<Fault>, tell: bool) -> Self {
        let now = Instant::now();
        Kernel {
            tape,
            pattern: pattern.clone(),
            now,
            began: now,
            wires: Vec::new(),
            backlogs: Vec::new(),
            post: Post::default(),
            rules: Rules::default(),
            entered: Vec::new(),
            descriptors: usize::MAX,
            frugal: true,
            broken_promise: false,
            willing: false,
            fault,
            calls: [0; _],
            interrupted: 0,
            progress: 0,
            tally: Tally { runs: 1, ..Tally::default() },
            told: tell.then(Vec::new),
        }
    }

    pub fn open(&self, kind: Kind) -> usize {
        self.wires.iter().filter(|wire| wire.kind == kind && wire.is_open()).count()
    }

    /// Whether the poll has something to tell.
    pub fn is_armed(&self) -> bool {
        self.wires.iter().any(|wire| wire.armed && wire.is_open())
            || self.backlogs.iter().any(|backlog| backlog.armed && backlog.listening)
            || self.post.armed && self.post.open
    }

    /// What the poll tells: some of what there is, for its list of events may be full.
    pub fn poll(&mut self) -> Vec<Readiness> {
        let mut ready = Vec::new();
        for backlog in self.backlogs.iter_mut().filter(|backlog| backlog.listening) {
            if std::mem::take(&mut backlog.armed) {
                ready.push(Readiness { readable: true, ..nothing(backlog.token) });
            }
        }
        if self.post.open
            && std::mem::take(&mut self.post.armed)
            && let Some(token) = self.post.token
        {
            ready.push(Readiness { readable: true, writable: true, ..nothing(token) });
        }
        for wire in &mut self.wires {
            if let Some(token) = wire.token
                && wire.armed
                && !wire.closed
                && (self.willing || !self.tape.chance(48))
            {
                wire.armed = false;
                let readiness = wire.readiness(token);
                wire.note(&readiness);
                ready.push(readiness);
            }
        }
        self.progress += ready.len() as u64;
        ready
    }

    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            told.push(what());
        }
    }

    /// The error that this call is to fail with, if any.
    fn fails(&mut self, call: Call) -> Option<Errno> {
        let calls = &mut self.calls[call as usize];
        *calls += 1;
        let fault = self.fault.filter(|fault| {
            fault.call == call && if fault.for_ever { *calls >= fault.first } else { *calls == fault.first }
        });
        let errno = match fault {
            Some(fault) => Some(fault.errno),
            None if !self.willing && matches!(call, Call::Read | Call::Write | Call::Receive | Call::Send) => {
                self.tape.chance(8).then_some(Errno::INTR)
            }
            None => None,
        };
        self.interrupted = if errno == Some(Errno::INTR) { self.interrupted + 1 } else { 0 };
        self.tally.interrupts += u64::from(self.interrupted > 0);
        assert!(self.interrupted < 10_000, "a call that is interrupted is made again for ever");
        if let Some(errno) = errno {
            self.tell(|| format!("      {call:?} fails: {errno:?}"));
        }
        errno
    }

    fn races(&mut self) -> bool {
        !self.willing && self.tape.chance(32)
    }

    /// Whether somebody from this address may come in.
    fn judge(&self, source: Option<IpAddr>) -> bool {
        let Some(ip) = source else { return true };
        let present =
            self.wires.iter().filter(|wire| wire.is_open() && wire.admitted && wire.source() == source).count();
        self.rules.denied != Some(ip) && self.rules.per_source.is_none_or(|most| present < most)
    }

    /// Whether one more may come in now, and counts it if so.
    fn enters(&mut self) -> bool {
        let (now, Some(most)) = (self.now, self.rules.rate) else { return true };
        self.entered.retain(|&then| now - then < Duration::from_secs(1));
        let enters = self.entered.len() < most;
        if enters {
            self.entered.push(now);
        }
        enters
    }

    /// The peer has said all that must be known to let it in.
    fn admit(&mut self, index: usize) {
        let admitted = self.judge(self.wires[index].source());
        self.wires[index].admitted = admitted;
        self.wires[index].refused = !admitted;
        self.rules.admitted += u64::from(admitted);
        self.tally.refused += u64::from(!admitted);
    }
}

pub(super) type Shared = Rc<RefCell<Kernel>>;

/// The server's end of a connection.
pub(super) struct Socket {
    kernel: Shared,
    index: usize,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let kernel = &mut *self.kernel.borrow_mut();
        let wire = &mut kernel.wires[self.index];
        wire.closed = true;
        wire.armed = false;
        kernel.progress += 1;
        let (number, aborted) = (wire.number, wire.aborted);
        kernel.tell(|| format!("      close {number}{}", if aborted { ", with a reset" } else { "" }));
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        if let Some(errno) = kernel.fails(Call::Read) {
            let now = kernel.now;
            let wire = &mut kernel.wires[self.index];
            match errno {
                Errno::INTR if kernel.interrupted < MAX_INTERRUPTS => {}
                Errno::AGAIN => {
                    // It would be told again; but a stop does not wait for what has not come.
                    (wire.armed, wire.blocked_at) = (true, Some(now));
                    wire.due = wire.due.min(wire.payload(wire.read));
                }
                _ => wire.failed = true,
            }
            return Err(errno.into());
        }
        let (races, now) = (kernel.races(), kernel.now);
        let more = if races { 1 + u64::from(kernel.tape.below(5000)) } else { 0 };
        let wire = &mut kernel.wires[self.index];
        let number = wire.number;
        if wire.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let mut count = wire.unread().min(into.len() as u64);
        if count == 0 {
            if wire.ended {
                wire.end_read = true;
                kernel.tell(|| format!("      read {number}: the end"));
                return Ok(0);
            }
            let needless = wire.known_drained && !wire.hinted && kernel.frugal;
            assert!(!needless, "connection {number} is read again, after a read that said that there is no more");
            wire.hinted = false;
            wire.blocked_at = Some(now);
            kernel.tally.would_blocks += 1;
            kernel.tell(|| format!("      read {number}: would block"));
            return Err(ErrorKind::WouldBlock.into());
        }
        if let Some(mark) = wire.urgent.filter(|&mark| mark > wire.read) {
            count = count.min(mark - wire.read);
        }
        if let Some(pieces) = &mut wire.pieces {
            while pieces.front().is_some_and(|&end| end <= wire.read) {
                pieces.pop_front();
            }
            count = pieces.front().map_or(count, |&end| count.min(end - wire.read));
        }
        let from_head = (wire.head.len() as u64).saturating_sub(wire.read).min(count) as usize;
        if from_head > 0 {
            into[..from_head].copy_from_slice(&wire.head[wire.read as usize..][..from_head]);
        }
        let (count, rest) = (count as usize, count as usize - from_head);
        let position = wire.payload(wire.read);
        into[from_head..count].copy_from_slice(kernel.pattern.piece(number, position, rest));
        let in_head = wire.read < wire.head.len() as u64;
        wire.read += count as u64;
        wire.known_drained = count < into.len() && wire.pieces.is_none();
        if wire.urgent.is_some_and(|mark| wire.read > mark) {
            wire.urgent = None;
        }
        wire.moved_at = Some(now);
        kernel.progress += 1;
        kernel.tally.bytes += count as u64;
        if races && wire.kind == Kind::Echo {
            wire.send(more);
        }
        let whole = in_head && wire.read >= wire.head.len() as u64 && wire.kind == Kind::Echo;
        if whole && !wire.header_is_bad && !wire.shut {
            kernel.tally.headers += 1;
            kernel.admit(self.index);
        }
        kernel.tell(|| format!("      read {number}: {count} of {}", into.len()));
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        let now = kernel.now;
        if let Some(errno) = kernel.fails(Call::Write) {
            let wire = &mut kernel.wires[self.index];
            match errno {
                Errno::INTR if kernel.interrupted < MAX_INTERRUPTS => {}
                Errno::AGAIN => wire.full(now),
                _ => wire.failed = true,
            }
            return Err(errno.into());
        }
        let races = kernel.races();
        let some = if races { 1 + u64::from(kernel.tape.below(5000)) } else { 0 };
        let wire = &mut kernel.wires[self.index];
        let number = wire.number;
        if wire.reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        assert!(!wire.shut, "it sends after its end");
        let count = wire.free().min(bytes.len() as u64);
        if wire.kind == Kind::Echo {
            assert!(wire.admitted, "connection {number} was not let in, and is sent something");
            let right = kernel.pattern.piece(number, wire.echoed, bytes.len()) == bytes;
            assert!(right, "what it sends is not what it read, from byte {} of connection {number} on", wire.echoed);
            assert!(wire.echoed + bytes.len() as u64 <= wire.payload(wire.read), "it sends what it has not read");
        } else {
            wire.answer.extend_from_slice(&bytes[..count as usize]);
        }
        wire.echoed += count;
        if count < bytes.len() as u64 {
            wire.full(now);
            kernel.tally.partial_sends += 1;
        }
        if count > 0 {
            wire.moved_at = Some(now);
            wire.sent_at = Some(now);
            kernel.progress += 1;
        }
        if races {
            wire.receive(some);
        }
        kernel.tell(|| format!("      send {number}: {count} of {}", bytes.len()));
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count as usize) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let kernel = &mut *self.kernel.borrow_mut();
        if let Some(errno) = kernel.fails(Call::Shutdown) {
            kernel.wires[self.index].failed = true;
            return Err(errno.into());
        }
        let wire = &mut kernel.wires[self.index];
        if wire.reset {
            return Err(ErrorKind::NotConnected.into());
        }
        wire.shut = true;
        wire.shut_at = Some(kernel.now);
        let number = wire.number;
        kernel.progress += 1;
        kernel.tell(|| format!("      shutdown {number}"));
        Ok(())
    }

    fn reset_on_drop(&mut self) {
        self.kernel.borrow_mut().wires[self.index].aborted = true;
    }

    fn short_read_is_conclusive(&self) -> bool {
        self.kernel.borrow().wires[self.index].pieces.is_none()
    }

    fn short_write_is_conclusive(&self) -> bool {
        true
    }
}

/// A listening socket, by its number.
pub(super) struct Listener(pub Shared, pub usize);

impl Drop for Listener {
    fn drop(&mut self) {
        let kernel = &mut *self.0.borrow_mut();
        let backlog = &mut kernel.backlogs[self.1];
        backlog.listening = false;
        let left = std::mem::take(&mut backlog.waiting);
        kernel.broken_promise |= left.iter().any(|&index| kernel.wires[index].promised);
        let number = self.1;
        kernel.tell(|| format!("      close listener {number}"));
    }
}

impl Listen for Listener {
    type Stream = Socket;

    fn accept(&mut self, token: Token) -> io::Result<(Socket, Origin)> {
        let kernel = &mut *self.0.borrow_mut();
        let kind = kernel.backlogs[self.1].kind;
        let open = kernel.open(kind);
        let all = kernel.open(Kind::Echo) + kernel.open(Kind::Http);
        if let Some((then, were_open, true)) = kernel.backlogs[self.1].refused {
            let pause = kernel.now - then;
            assert!(pause >= Duration::from_millis(10) || open < were_open, "refused, it tries again after {pause:?}");
        }
        let error = if let Some(errno) = kernel.fails(Call::Accept) {
            Some(errno)
        } else if all >= kernel.descriptors {
            Some(Errno::MFILE)
        } else if let Some(errno) = kernel.backlogs[self.1].fails {
            Some(errno)
        } else if !kernel.willing && kernel.tape.chance(16) {
            let some = [Errno::INTR, Errno::CONNABORTED, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
            Some(some[kernel.tape.below(5) as usize])
        } else {
            None
        };
        let number = self.1;
        let backlog = &mut kernel.backlogs[number];
        if let Some(error) = error {
            if error == Errno::AGAIN {
                // It would be told again; but of a backlog that lets nobody in, it is known that all have been accepted. What
                // was refused before is refused no more.
                (backlog.armed, backlog.refused) = (true, None);
                let nobody_left = backlog.closed;
                backlog.waiting.iter().for_each(|&index| kernel.wires[index].promised &= !nobody_left);
            } else {
                let hard = !matches!(error, Errno::INTR | Errno::CONNABORTED);
                backlog.refused = Some((kernel.now, open, hard));
            }
            kernel.tally.accept_failures += 1;
            kernel.tell(|| format!("      accept at {number}: {error:?}"));
            return Err(error.into());
        }
        backlog.refused = None;
        let Some(index) = backlog.waiting.pop_front() else {
            kernel.tell(|| format!("      accept at {number}: would block"));
            return Err(ErrorKind::WouldBlock.into());
        };
        kernel.progress += 1;
        let wire = &mut kernel.wires[index];
        let origin = wire.origin;
        kernel.tell(|| format!("      accept at {number}: connection {index}"));
        if kind == Kind::Echo {
            let enters = (kernel.rules.proxied || kernel.judge(origin.ip())) && kernel.enters();
            if !enters {
                kernel.wires[index].refused = true;
                kernel.tally.refused += 1;
            } else if !kernel.rules.proxied {
                kernel.wires[index].admitted = true;
                kernel.rules.admitted += 1;
            }
        }
        let now = kernel.now;
        let wire = &mut kernel.wires[index];
        wire.token = Some(token);
        wire.armed = true;
        wire.moved_at = Some(now);
        wire.sent_at = Some(now);
        wire.accepted_at = Some(now);
        Ok((Socket { kernel: self.0.clone(), index }, origin))
    }

    fn close_backlog(&mut self) -> usize {
        let kernel = &mut *self.0.borrow_mut();
        let backlog = &mut kernel.backlogs[self.1];
        backlog.closed = true;
        // It says how many there may be.
        backlog.waiting.len() + kernel.tape.below(2) as usize
    }
}

/// The datagram socket.
pub(super) struct Port(pub Shared);

impl Drop for Port {
    fn drop(&mut self) {
        self.0.borrow_mut().post.open = false;
    }
}

impl DatagramSocket for Port {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)> {
        let kernel = &mut *self.0.borrow_mut();
        let injected = kernel.fails(Call::Receive);
        if let Some(errno) = injected.or(kernel.post.fails) {
            kernel.post.armed |= errno == Errno::AGAIN;
            kernel.post.failed = errno != Errno::AGAIN;
            return Err(errno.into());
        }
        kernel.post.failed = false;
        let (number, envelope) = kernel.post.waiting.pop_front().ok_or(ErrorKind::WouldBlock)?;
        kernel.progress += 1;
        kernel.post.received[number as usize] += 1;
        kernel.tell(|| format!("      receive datagram {number}"));
        let bytes = datagram(number);
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok((bytes.len(), envelope))
    }

    fn send(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()> {
        let kernel = &mut *self.0.borrow_mut();
        if let Some(errno) = kernel.fails(Call::Send) {
            return Err(errno.into());
        }
        // Who sent it is told by its port.
        let number = u32::from(envelope.from.port()) - FIRST_PORT;
        assert_eq!(bytes, datagram(number), "datagram {number} comes back as another");
        if kernel.post.full {
            return Err(ErrorKind::WouldBlock.into());
        }
        kernel.post.answered[number as usize] += 1;
        kernel.tell(|| format!("      answer datagram {number}"));
        Ok(())
    }
}

/// Datagrams come from a port of their own each, from here on.
pub(super) const FIRST_PORT: u32 = 1020;

pub(super) fn envelope(number: u32, ip: IpAddr, to_many: bool) -> Envelope {
    let from = SocketAddr::new(ip, (FIRST_PORT + number) as u16);
    Envelope { from, to: None, to_many }
}
