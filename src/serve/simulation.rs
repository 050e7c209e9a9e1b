//! The whole service in a simulated network: scripted sockets, a scripted poll, a clock of its own, all decided by a
//! seed.
//!
//! The network is a model of Linux's: an edge when bytes, an end or a reset arrive, and when a send buffer that was
//! found full has a third of it free again; events that tell what is so when they are taken, and may be stale by the
//! time they are seen. What it promises is checked after every turn, and a seed that breaks a promise is printed:
//! `ECHOLOOP_SEED=... cargo test simulat` plays it again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mio::Token;
use rustix::io::Errno;

use super::Config;
use super::service::Service;
use crate::reactor::scripted::{ScriptedPort, read_closed, readable};
use crate::reactor::socket::Origin;
use crate::reactor::{CLOSE_TIMEOUT, LINGER_TIMEOUT, Listen, Readiness, Settings, Source, Stream};

/// Connections that a simulated peer population may have open at once.
const POPULATION: usize = 12;

/// Turns in which the network does as it likes, before it becomes willing.
const STORM: usize = 120;

const TERMINATOR: &str = "bye";

/// What was done to the service, over all seeds.
#[derive(Debug, Default)]
struct Tally {
    seeds: u64,
    turns: u64,
    connections: u64,
    bytes: u64,
    partial_sends: u64,
    would_blocks: u64,
    interrupts: u64,
    resets: u64,
    half_closes: u64,
    vanished: u64,
    accept_failures: u64,
    stale_events: u64,
    idle_closes: u64,
    farewells: u64,
    stops: u64,
}

/// One connection, as the kernel and the peer have it.
#[derive(Default)]
struct Wire {
    number: u64,
    /// Bytes that the peer has sent, that the server has read, that it has sent back, that the peer has received.
    sent: u64,
    read: u64,
    echoed: u64,
    received: u64,
    /// What it had read when the turn began.
    read_before: u64,
    /// What it must have sent back before it says that this was all: a stop echoes what had arrived by then.
    due: u64,
    /// The sizes of the kernel's buffers.
    receive_buffer: u64,
    send_buffer: u64,
    /// The peer has closed its side; has reset the connection; will do nothing more.
    ended: bool,
    reset: bool,
    vanished: bool,
    /// The server has seen the end; has closed its side; has closed the socket.
    end_read: bool,
    shut: bool,
    closed: bool,
    /// The server has told the peer, by a reset, that bytes are missing.
    aborted: bool,
    accepted_at: Option<Instant>,
    shut_at: Option<Instant>,
    /// Its key in the service; the poll has something to tell about it; a send found the buffer full.
    token: Option<Token>,
    armed: bool,
    no_space: bool,
    /// When a byte last moved between the server and its socket, and when one did that was sent.
    moved_at: Option<Instant>,
    sent_at: Option<Instant>,
    /// When the server last found nothing to read, or no room to write.
    blocked_at: Option<Instant>,
}

impl Wire {
    fn unread(&self) -> u64 {
        self.sent - self.read
    }

    fn free(&self) -> u64 {
        self.send_buffer - (self.echoed - self.received)
    }

    fn is_open(&self) -> bool {
        self.token.is_some() && !self.closed
    }

    fn send(&mut self, count: u64) {
        let count = count.min(self.receive_buffer - self.unread());
        if count > 0 && !self.ended && !self.reset {
            self.sent += count;
            self.armed = true;
        }
    }

    fn receive(&mut self, count: u64) {
        self.received += count.min(self.echoed - self.received);
        if self.no_space && self.free() * 3 >= self.send_buffer {
            self.no_space = false;
            self.armed = true;
        }
    }

    fn end(&mut self) {
        self.armed |= !self.ended && !self.reset;
        self.ended = true;
    }

    fn reset(&mut self) {
        self.armed |= !self.reset;
        self.reset = true;
    }

    fn readiness(&self, token: Token) -> Readiness {
        let gone = self.ended || self.reset;
        Readiness {
            urgent: false,
            token,
            readable: gone || self.unread() > 0,
            writable: self.reset || self.free() * 3 >= self.send_buffer,
            read_closed: gone,
        }
    }
}

/// The bytes that all peers send, each from a place of its own: a block of a prime length, repeated. It is full of
/// newlines and beginnings of [`TERMINATOR`], which is in it as a message here and there.
struct Pattern(Vec<u8>);

impl Pattern {
    const PERIOD: u64 = 65_521;

    fn new(rng: &mut Rng) -> Self {
        let block: Vec<u8> = (0..Self::PERIOD).map(|_| rng.choice(*b"bye\nBY\r-").unwrap()).collect();
        let again = block.len() + Settings::default().max_read_size;
        Pattern(block.into_iter().cycle().take(again).collect())
    }

    /// `length` bytes of a connection from `position` on; at most one read.
    fn piece(&self, number: u64, position: u64, length: usize) -> &[u8] {
        let at = ((number * 40_503 + position) % Self::PERIOD) as usize;
        &self.0[at..at + length]
    }
}

/// The kernel.
struct Kernel {
    rng: Rng,
    pattern: Rc<Pattern>,
    now: Instant,
    wires: Vec<Wire>,
    backlog: VecDeque<usize>,
    listener_armed: bool,
    listening: bool,
    /// Nobody gets into the backlog any more.
    backlog_closed: bool,
    descriptors: usize,
    /// When the last accept was refused for want of something, and how many connections were open then.
    refused: Option<(Instant, usize)>,
    /// Calls are interrupted, accepts fail, and bytes move while the server is in a call.
    willing: bool,
    tally: Tally,
}

impl Kernel {
    fn open(&self) -> usize {
        self.wires.iter().filter(|wire| wire.is_open()).count()
    }

    fn interrupts(&mut self) -> bool {
        let interrupted = !self.willing && self.rng.u8(..) < 8;
        self.tally.interrupts += u64::from(interrupted);
        interrupted
    }

    fn races(&mut self) -> bool {
        !self.willing && self.rng.u8(..) < 32
    }
}

type Shared = Rc<RefCell<Kernel>>;

/// The server's end of a connection.
struct Socket {
    kernel: Shared,
    index: usize,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let wire = &mut self.kernel.borrow_mut().wires[self.index];
        wire.closed = true;
        wire.armed = false;
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        if kernel.interrupts() {
            return Err(ErrorKind::Interrupted.into());
        }
        let (races, now, more) = (kernel.races(), kernel.now, kernel.rng.u64(1..5000));
        let wire = &mut kernel.wires[self.index];
        if wire.reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let count = wire.unread().min(into.len() as u64);
        if count == 0 {
            if wire.ended {
                wire.end_read = true;
                return Ok(0);
            }
            wire.blocked_at = Some(now);
            kernel.tally.would_blocks += 1;
            return Err(ErrorKind::WouldBlock.into());
        }
        into[..count as usize].copy_from_slice(kernel.pattern.piece(wire.number, wire.read, count as usize));
        wire.read += count;
        wire.moved_at = Some(now);
        kernel.tally.bytes += count;
        if races {
            wire.send(more);
        }
        Ok(count as usize)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        if kernel.interrupts() {
            return Err(ErrorKind::Interrupted.into());
        }
        let (races, now, some) = (kernel.races(), kernel.now, kernel.rng.u64(1..5000));
        let wire = &mut kernel.wires[self.index];
        if wire.reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        assert!(!wire.shut, "it sends after its end");
        let right = kernel.pattern.piece(wire.number, wire.echoed, bytes.len()) == bytes;
        assert!(right, "what it sends is not what it read, from byte {} of connection {} on", wire.echoed, wire.number);
        assert!(wire.echoed + bytes.len() as u64 <= wire.read, "it sends what it has not read");
        let count = wire.free().min(bytes.len() as u64);
        wire.echoed += count;
        if count < bytes.len() as u64 {
            wire.no_space = true;
            wire.blocked_at = Some(now);
            kernel.tally.partial_sends += 1;
        }
        if count > 0 {
            wire.moved_at = Some(now);
            wire.sent_at = Some(now);
        }
        if races {
            wire.receive(some);
        }
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count as usize) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let kernel = &mut *self.kernel.borrow_mut();
        let wire = &mut kernel.wires[self.index];
        if wire.reset {
            return Err(ErrorKind::NotConnected.into());
        }
        wire.shut = true;
        wire.shut_at = Some(kernel.now);
        Ok(())
    }

    fn reset_on_drop(&mut self) {
        self.kernel.borrow_mut().wires[self.index].aborted = true;
    }

    fn short_read_is_conclusive(&self) -> bool {
        true
    }

    fn short_write_is_conclusive(&self) -> bool {
        true
    }
}

/// The listening socket.
struct Listener(Shared);

impl Drop for Listener {
    fn drop(&mut self) {
        let mut kernel = self.0.borrow_mut();
        kernel.listening = false;
        kernel.backlog.clear();
    }
}

impl Listen for Listener {
    type Stream = Socket;

    fn accept(&mut self, token: Token) -> io::Result<(Socket, Origin)> {
        let kernel = &mut *self.0.borrow_mut();
        let open = kernel.open();
        if let Some((then, were_open)) = kernel.refused {
            let pause = kernel.now - then;
            assert!(pause >= Duration::from_millis(10) || open < were_open, "refused, it tries again after {pause:?}");
        }
        let error = if open >= kernel.descriptors {
            Some(Errno::MFILE)
        } else if !kernel.willing && kernel.rng.u8(..) < 16 {
            kernel.rng.choice([Errno::INTR, Errno::CONNABORTED, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM])
        } else {
            None
        };
        let refused = error.is_some_and(|error| !matches!(error, Errno::INTR | Errno::CONNABORTED));
        kernel.refused = refused.then_some((kernel.now, open));
        if let Some(error) = error {
            kernel.tally.accept_failures += 1;
            return Err(error.into());
        }
        let index = kernel.backlog.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let wire = &mut kernel.wires[index];
        wire.token = Some(token);
        wire.armed = true;
        wire.moved_at = Some(kernel.now);
        wire.sent_at = Some(kernel.now);
        wire.accepted_at = Some(kernel.now);
        Ok((Socket { kernel: self.0.clone(), index }, Origin::Unix))
    }

    fn close_backlog(&mut self) -> usize {
        let mut kernel = self.0.borrow_mut();
        kernel.backlog_closed = true;
        kernel.backlog.len()
    }
}

/// The service, and the network around it.
struct World {
    kernel: Shared,
    service: Service<Socket, ScriptedPort>,
    config: Config,
    max_connections: usize,
    stopped: Option<Instant>,
}

impl World {
    fn new(seed: u64, pattern: &Rc<Pattern>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let config = Config {
            terminator: rng.bool().then(|| TERMINATOR.to_owned()),
            accept_limit: (rng.u8(..) < 32).then(|| rng.u64(1..30)),
            idle_timeout: rng.bool().then(|| Duration::from_secs(rng.u64(1..20))),
            drain_timeout: Duration::from_secs(rng.u64(0..10)),
            ..Config::default()
        };
        let max_connections = rng.usize(1..=POPULATION);
        let kernel = Rc::new(RefCell::new(Kernel {
            descriptors: POPULATION,
            refused: None,
            rng,
            pattern: pattern.clone(),
            now: Instant::now(),
            wires: Vec::new(),
            backlog: VecDeque::new(),
            listener_armed: false,
            listening: true,
            backlog_closed: false,
            willing: false,
            tally: Tally { seeds: 1, ..Tally::default() },
        }));
        let now = kernel.borrow().now;
        let mut service = Service::new(&config, max_connections, None, now);
        service.streams.listen(|_| Ok(Listener(kernel.clone()))).expect("it cannot fail");
        World { kernel, service, config, max_connections, stopped: None }
    }

    /// The network does one thing, or none.
    fn stir(&mut self) {
        let kernel = &mut *self.kernel.borrow_mut();
        let rng = &mut kernel.rng;
        let present: Vec<usize> = (0..kernel.wires.len())
            .filter(|&index| !kernel.wires[index].closed && !kernel.wires[index].vanished)
            .collect();
        let what = rng.u8(..100);
        let count = 1 << rng.u32(..21);
        let Some(&index) = present.get(rng.usize(..POPULATION)).filter(|_| what >= 10) else {
            if kernel.listening && !kernel.backlog_closed && present.len() < POPULATION {
                kernel.backlog.push_back(kernel.wires.len());
                kernel.listener_armed = true;
                kernel.tally.connections += 1;
                // Now and then one that has more than a turn's budget on its way.
                let largest = if rng.u8(..) < 32 { 21 } else { 18 };
                kernel.wires.push(Wire {
                    number: kernel.wires.len() as u64,
                    receive_buffer: 1 << rng.u32(8..=largest),
                    send_buffer: 1 << rng.u32(8..=largest),
                    ..Wire::default()
                });
            }
            return;
        };
        let wire = &mut kernel.wires[index];
        match what {
            10..50 => wire.send(rng.u64(1..=count)),
            50..85 => wire.receive(rng.u64(1..=count)),
            85..90 => {
                wire.end();
                kernel.tally.half_closes += 1;
            }
            90..92 => {
                wire.reset();
                kernel.tally.resets += 1;
            }
            92 => {
                wire.vanished = true;
                kernel.tally.vanished += 1;
            }
            93..96 => kernel.descriptors = rng.usize(..=POPULATION),
            _ => kernel.now += Duration::from_millis(1 << rng.u32(..14)),
        }
    }

    /// What the poll tells: some of what there is, and now and then something that is not so.
    fn poll(&mut self) -> Vec<Readiness> {
        let kernel = &mut *self.kernel.borrow_mut();
        let mut ready = Vec::new();
        if kernel.listening && std::mem::take(&mut kernel.listener_armed) {
            ready.push(readable(Token(Settings::TOKENS / 2)));
        }
        for wire in &mut kernel.wires {
            // A poll's list of events may be full; the rest is told by the next one.
            if let Some(token) = wire.token
                && wire.armed
                && (kernel.willing || kernel.rng.u8(..) < 192)
            {
                wire.armed = false;
                ready.push(wire.readiness(token));
            }
        }
        if !kernel.willing && kernel.rng.u8(..) < 64 {
            kernel.tally.stale_events += 1;
            let (token, bits) = (Token(kernel.rng.usize(..POPULATION)), kernel.rng.u8(..4));
            let (readable, writable) = (bits & 1 > 0, bits & 2 > 0);
            ready.push(Readiness { readable, writable, ..read_closed(token) });
        }
        kernel.rng.shuffle(&mut ready);
        ready
    }

    fn turn(&mut self) {
        let ready = self.poll();
        let now = self.kernel.borrow().now;
        let before = self.begin();
        self.service.turn_with(now, ready);
        self.kernel.borrow_mut().tally.turns += 1;
        self.check(now, &before);
    }

    /// Who is there when a turn begins.
    fn begin(&mut self) -> Vec<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.wires.iter_mut().for_each(|wire| wire.read_before = wire.read);
        (0..kernel.wires.len()).filter(|&index| kernel.wires[index].is_open()).collect()
    }

    /// What must hold after every turn.
    fn check(&mut self, now: Instant, before: &[usize]) {
        let kernel = &mut *self.kernel.borrow_mut();
        assert_eq!(self.service.streams.len(), kernel.open(), "each open socket has its connection, and no other");
        assert!(kernel.open() <= self.max_connections);
        let overdue = self.stopped.is_some_and(|stopped| now >= stopped + self.config.drain_timeout);
        assert!(!overdue || kernel.open() == 0, "the drain timeout has passed, and connections are left");
        let resumes = kernel.refused.is_some_and(|(_, were_open)| kernel.open() < were_open);
        assert!(!resumes || !kernel.listening, "a connection has closed, and accepting was not tried again");
        // Memory is bounded by one read each, and nothing is held for who is gone.
        let settings = Settings::default();
        let read_size = settings.max_read_size as u64;
        let owed = |wire: &Wire| wire.read - wire.echoed;
        let held: u64 = kernel.wires.iter().filter(|wire| wire.is_open() && !wire.shut).map(owed).sum();
        let waiting = self.service.streams.counters().waiting_bytes;
        if self.stopped.is_none() && self.config.terminator.is_none() {
            assert_eq!(waiting, held, "what was read and not echoed is what waits");
            assert!(kernel.wires.iter().filter(|wire| wire.is_open()).all(|wire| owed(wire) <= read_size));
        }
        // What comes after the terminator, or after a stop, is read and thrown away.
        assert!(waiting <= held.min(kernel.open() as u64 * read_size));
        // Nobody is closed without a reason.
        for &index in before {
            let wire = &mut kernel.wires[index];
            let (number, taken) = (wire.number, wire.read - wire.read_before);
            // Who seems idle is served once more before it is closed.
            let services = 1 + u64::from(self.config.idle_timeout.is_some());
            let budget = services * (settings.read_budget + settings.max_read_size) as u64;
            assert!(taken <= budget, "connection {number} was read {taken} bytes in one turn");
            let told = wire.shut && !wire.aborted && !wire.reset;
            assert!(!told || wire.echoed >= wire.due, "a stop left bytes of connection {number} unanswered");
            if wire.reset {
                continue;
            }
            if self.stopped.is_some() {
                let told = wire.closed || wire.shut || owed(wire) > 0 || wire.unread() > 0;
                // One whose last read was as large as it could be is asked once more.
                let asked = self.service.sleep(now) == Some(Duration::ZERO);
                assert!(told || asked, "connection {number} is not told of the stop");
                continue;
            }
            let last = wire.echoed.min(5);
            let last = kernel.pattern.piece(number, wire.echoed - last, last as usize);
            let farewell = self.config.terminator.is_some() && last.trim_ascii_end().ends_with(TERMINATOR.as_bytes());
            assert!(!wire.shut || farewell, "connection {number} was sent its end after {last:?}");
            let whole = wire.echoed == wire.sent;
            if !wire.closed || wire.end_read && (whole || farewell) {
                kernel.tally.farewells += u64::from(wire.closed && !whole);
                continue;
            }
            // What is read after the terminator is thrown away, and keeps nobody alive.
            let moved_at = if self.config.terminator.is_some() { wire.sent_at } else { wire.moved_at };
            // The reactor counts whole milliseconds.
            let since = |then: Option<Instant>| now - then.expect("it was accepted") + Duration::from_millis(1);
            let quiet = since(moved_at);
            if wire.shut {
                let given = since(wire.shut_at);
                assert!(given >= LINGER_TIMEOUT, "connection {number} was given {given:?} to end");
                continue;
            }
            assert!(wire.aborted || owed(wire) == 0, "connection {number} takes a part for the whole");
            if wire.aborted && self.config.terminator.is_some() && since(wire.accepted_at) >= CLOSE_TIMEOUT {
                continue; // its peer did not take what it was owed before the end
            }
            assert_eq!(wire.blocked_at, Some(now), "connection {number} was closed as idle, and was not asked");
            let idle = self.config.idle_timeout.is_some_and(|timeout| quiet >= timeout);
            assert!(idle, "connection {number} was closed after {quiet:?} of quiet");
            kernel.tally.idle_closes += 1;
        }
        let sleeps = self.service.sleep(now);
        if sleeps != Some(Duration::ZERO) {
            self.check_asleep(kernel, sleeps);
        }
    }

    /// What must hold when the loop would sleep: whoever has something to do will be told of it.
    fn check_asleep(&self, kernel: &Kernel, sleeps: Option<Duration>) {
        for wire in kernel.wires.iter().filter(|wire| wire.is_open() && !wire.armed) {
            let Wire { number, read, echoed, .. } = *wire;
            assert!(!wire.reset, "connection {number} is reset, and nobody will see it");
            if read > echoed && !wire.shut {
                assert!(wire.no_space, "connection {number} has bytes to send, and no edge will come");
            } else {
                assert_eq!(wire.unread(), 0, "connection {number} has bytes to read, and no edge will come");
                assert!(!wire.ended, "connection {number} has ended, and no edge will come");
            }
        }
        if !kernel.backlog.is_empty() && !kernel.listener_armed {
            let full = self.service.streams.len() >= self.max_connections;
            assert!(full || sleeps.is_some(), "somebody waits in the backlog, and nobody will look");
        }
    }

    fn storm(&mut self) {
        let turns = self.kernel.borrow_mut().rng.usize(1..STORM);
        for _ in 0..turns {
            let stirs = self.kernel.borrow_mut().rng.usize(..8);
            for _ in 0..stirs {
                self.stir();
            }
            if self.stopped.is_none() && self.kernel.borrow_mut().rng.u16(..) < 512 {
                self.stop();
            }
            self.turn();
        }
    }

    fn stop(&mut self) {
        let mut kernel = self.kernel.borrow_mut();
        let now = kernel.now;
        kernel.tally.stops += 1;
        let looks = self.config.terminator.is_some();
        for wire in kernel.wires.iter_mut().filter(|wire| !looks && !wire.closed && !wire.shut) {
            wire.due = wire.sent;
        }
        drop(kernel);
        self.stopped = Some(now);
        self.service.stop(now);
    }

    /// The network becomes willing: errors end, peers read what there is, and close. Then nobody may be left. Peers that
    /// have vanished do nothing still, unless only a word of theirs could end their connection.
    fn calm(&mut self) {
        {
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.willing = true;
            kernel.descriptors = usize::MAX;
            let timed = self.stopped.is_some() || self.config.idle_timeout.is_some();
            for wire in kernel.wires.iter_mut().filter(|wire| wire.vanished && !wire.shut && !timed) {
                wire.reset();
            }
        }
        for _ in 0..100_000 {
            {
                let kernel = &mut *self.kernel.borrow_mut();
                for wire in kernel.wires.iter_mut().filter(|wire| !wire.closed && !wire.vanished) {
                    wire.receive(u64::MAX);
                    wire.end();
                }
            }
            let now = self.kernel.borrow().now;
            let armed = self.kernel.borrow().wires.iter().any(|wire| wire.armed && wire.is_open());
            let armed = armed || self.kernel.borrow().listener_armed && self.kernel.borrow().listening;
            match self.service.sleep(now) {
                _ if self.service.streams.is_empty() && self.kernel.borrow().backlog.is_empty() => {
                    return self.finish();
                }
                Some(sleep) if !armed => self.kernel.borrow_mut().now += sleep,
                None if !armed => panic!("the loop sleeps for ever, and connections are left"),
                _ => {}
            }
            self.turn();
        }
        panic!("connections are left, and the loop spins");
    }

    fn finish(&mut self) {
        let kernel = self.kernel.borrow();
        assert_eq!(self.service.streams.counters().waiting_bytes, 0, "nothing is held for who is gone");
        assert_eq!(self.service.is_done(), !kernel.listening);
        assert!(self.stopped.is_none() || !kernel.listening);
        let counters = self.service.summary().counters;
        assert_eq!(counters.opened, counters.closed_total(), "each connection that was opened is accounted for");
    }
}

fn simulate(seed: u64, pattern: &Rc<Pattern>, total: &mut Tally) {
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, pattern);
        world.storm();
        world.calm();
        std::mem::take(&mut world.kernel.borrow_mut().tally)
    }));
    let tally = result.unwrap_or_else(|panic| {
        eprintln!("play it again: ECHOLOOP_SEED={seed} cargo test simulat");
        panic::resume_unwind(panic)
    });
    total.add(&tally);
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.turns += other.turns;
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.partial_sends += other.partial_sends;
        self.would_blocks += other.would_blocks;
        self.interrupts += other.interrupts;
        self.resets += other.resets;
        self.half_closes += other.half_closes;
        self.vanished += other.vanished;
        self.accept_failures += other.accept_failures;
        self.stale_events += other.stale_events;
        self.idle_closes += other.idle_closes;
        self.farewells += other.farewells;
        self.stops += other.stops;
    }
}

#[test]
fn simulated_networks_find_nothing_lost_and_nobody_stuck() {
    let (pattern, mut total) = (Rc::new(Pattern::new(&mut Rng::with_seed(0))), Tally::default());
    if let Ok(seed) = env::var("ECHOLOOP_SEED") {
        return simulate(seed.parse().expect("ECHOLOOP_SEED is a number"), &pattern, &mut total);
    }
    for seed in 0..3000 {
        simulate(seed, &pattern, &mut total);
    }
    // A simulation in which nothing happens would find nothing.
    let Tally { partial_sends, interrupts, resets, half_closes, vanished, accept_failures, .. } = total;
    let Tally { stale_events, idle_closes, farewells, stops, would_blocks, .. } = total;
    let faults = [partial_sends, interrupts, resets, half_closes, vanished, accept_failures];
    assert!(
        faults.iter().chain(&[stale_events, idle_closes, farewells, stops, would_blocks]).all(|&count| count > 100),
        "{total:?}"
    );
}

/// Runs for `ECHOLOOP_SECONDS` (60), from seeds that differ each time.
#[test]
#[ignore = "runs for as long as it is told"]
fn simulated_networks_for_as_long_as_is_asked() {
    let seconds = env::var("ECHOLOOP_SECONDS").map_or(60, |text| text.parse().expect("ECHOLOOP_SECONDS is a number"));
    let (began, first) = (Instant::now(), fastrand::u64(..));
    let (pattern, mut total) = (Rc::new(Pattern::new(&mut Rng::with_seed(0))), Tally::default());
    while began.elapsed() < Duration::from_secs(seconds) {
        simulate(first.wrapping_add(total.seeds), &pattern, &mut total);
    }
    println!("{total:#?}");
}
