//! The load generator in a simulated world: servers that are honest, slow, frozen, capped, dying, restarting, deaf or
//! lying, networks that lose, swap and repeat datagrams, and a generator that stands still, all decided by a seed, on a clock of
//! its own. Some seeds search for the highest rate.
//!
//! The world keeps its own account: when each byte was written and read. After every run it is compared with the
//! ledger's, and with what follows from it. `ECHOLOOP_SEED=... cargo test --lib bench::simulation` plays a seed again.

mod datagrams;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind as Io, Read, Write};
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mio::Token;

use super::clock::{Nanos, nanos};
use super::driver::{Driver, Outcome, Pace};
use super::latency::{PERCENTILES, Quantile};
use super::machine::World;
use super::payload::Sizes;
use super::progress::Progress;
use super::summary::{Cut, ErrorKind, Limit};
use super::{Config, Criterion, assemble, open, search, verdict};
use crate::reactor::address::Address;
use crate::reactor::{Readiness, Stream};
use crate::signals::Request;
use crate::simulation::{endless_seeds, seeds};
use datagrams::Mailbox;

/// What reading the clock takes.
const CLOCK_READ: Duration = Duration::from_nanos(20);

/// What a poll takes that finds nothing and does not sleep.
const POLL: Duration = Duration::from_micros(40);

/// Bytes on their way to the server on each connection at which its buffers are full.
const BUFFER: usize = 20_000;

/// Polls after which a run does not end.
const MAX_POLLS: u32 = 400_000;

/// By how much times may be off: the clock is read some times around each call.
const SLACK: Nanos = 2_000;

thread_local! {
    /// Now; only this moves.
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn now() -> Instant {
    NOW.get().expect("the clock is set")
}

fn set_now(to: Instant) {
    NOW.set(Some(to.max(now())));
}

/// The generator's clock.
fn read_clock() -> Instant {
    set_now(now() + CLOCK_READ);
    now()
}

/// What a server is like. Times count from the first connection.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Honest,
    /// Each reply takes up to so long.
    Slow(Duration),
    /// From the one time to the other it does nothing.
    Frozen(Duration, Duration),
    /// So many bytes in a second, over all connections.
    Capped(f64),
    /// At that time all connections are lost, with a reset or an end, and nobody listens until the other.
    Dying {
        at: Duration,
        back: Duration,
        reset: bool,
    },
    /// From some time on, one byte is not what was sent.
    Lying(Duration),
    /// Only so many connections are ever served.
    Deaf(u64),
    /// It closes each connection at once.
    Dropping,
    /// It keeps its side of a connection open for so long.
    KeepingOpen(Duration),
    /// Of datagrams some are lost, some come twice, and each takes up to so long.
    Lossy {
        lost: f64,
        repeated: f64,
        late: Duration,
    },
}

/// What happens at a connection, as the generator sees it.
enum Event {
    Open,
    Refused,
    /// Bytes can be read.
    Bytes(Vec<u8>),
    /// The server has taken so many bytes.
    Taken(usize),
    End,
    Reset,
}

/// One connection.
struct Wire {
    token: Token,
    serial: u64,
    opened: Instant,
    events: VecDeque<(Instant, Event)>,
    /// Something has happened that the poll has not told of.
    edge: bool,
    established: Option<bool>,
    readable: VecDeque<u8>,
    end: Option<Io>,
    on_its_way: usize,
    /// When the server is done with what was sent last.
    busy_until: Instant,
    lost: bool,
    dropped: bool,
    /// Up to which byte each write and read went, and when.
    writes: Vec<(u64, Instant)>,
    reads: Vec<(u64, Instant)>,
}

impl Wire {
    /// Takes in what has happened by now.
    fn advance(&mut self) {
        while let Some((_, event)) = self.events.pop_front_if(|(at, _)| *at <= now()) {
            self.edge = true;
            match event {
                Event::Open => self.established = Some(true),
                Event::Refused => self.established = Some(false),
                Event::Bytes(bytes) => self.readable.extend(bytes),
                Event::Taken(count) => self.on_its_way -= count,
                Event::End => self.end = self.end.or(Some(Io::UnexpectedEof)),
                Event::Reset => {
                    self.end = Some(Io::ConnectionReset);
                    self.readable.clear();
                }
            }
        }
    }

    fn written(&self) -> u64 {
        self.writes.last().map_or(0, |(end, _)| *end)
    }

    fn read(&self) -> u64 {
        self.reads.last().map_or(0, |(end, _)| *end)
    }
}

/// What all connections share.
struct Net {
    rng: Rng,
    kind: Kind,
    /// The longest that anything takes, in microseconds.
    hop: u64,
    began: Instant,
    wires: Vec<Rc<RefCell<Wire>>>,
    mailboxes: Vec<Rc<RefCell<Mailbox>>>,
    /// Datagrams that nobody listened for, and those that came twice.
    refused: u64,
    repeated: u64,
    /// When a capped server is done with all that it has.
    busy_until: Instant,
    /// A byte was changed.
    lied: bool,
    /// Writes that were not taken whole.
    partial: u64,
    polls: u32,
    max_polls: u32,
    /// When the generator stands still, and for how long; and how long it did.
    stalls: VecDeque<(Duration, Duration)>,
    stalled: Duration,
    stood_still: Vec<(Instant, Duration)>,
    /// When somebody asks for the end.
    signals: VecDeque<Duration>,
}

impl Net {
    fn at(&self, since: Duration) -> Instant {
        self.began + since
    }

    fn is_up(&self) -> bool {
        match self.kind {
            Kind::Dying { at, back, .. } => now() < self.at(at) || now() >= self.at(back),
            _ => true,
        }
    }

    /// Gives bytes to the server, and decides when they come back.
    fn serve(&mut self, wire: &mut Wire, mut bytes: Vec<u8>) {
        let arrived = (now() + Duration::from_micros(self.rng.u64(5..self.hop))).max(wire.busy_until);
        let done = match self.kind {
            Kind::Slow(most) => arrived + most.mul_f64(self.rng.f64()),
            Kind::Frozen(from, to) if (self.at(from)..self.at(to)).contains(&arrived) => self.at(to),
            Kind::Capped(rate) => {
                self.busy_until = self.busy_until.max(arrived) + Duration::from_secs_f64(bytes.len() as f64 / rate);
                self.busy_until
            }
            Kind::Lying(since) if !self.lied && now() >= self.at(since) => {
                self.lied = true;
                let at = self.rng.usize(..bytes.len());
                bytes[at] ^= 1 << self.rng.u8(..8);
                arrived
            }
            Kind::Deaf(served) if wire.serial >= served => return,
            _ => arrived,
        };
        // Cut anywhere.
        let rest = bytes.split_off(self.rng.usize(..=bytes.len()));
        let later = done + Duration::from_micros(self.rng.u64(..30));
        wire.busy_until = later;
        for (at, part) in [(done, bytes), (later, rest)] {
            if !part.is_empty() {
                wire.events.push_back((at, Event::Taken(part.len())));
                wire.events.push_back((at, Event::Bytes(part)));
            }
        }
    }

    /// The server loses everybody, if its time has come.
    fn die(&self) {
        let Kind::Dying { at, reset, .. } = self.kind else { return };
        let dies_at = self.at(at);
        if now() < dies_at {
            return;
        }
        for wire in &self.wires {
            let wire = &mut *wire.borrow_mut();
            if !wire.lost && wire.opened < dies_at {
                wire.lost = true;
                wire.events.clear();
                wire.events.push_back((now(), if reset { Event::Reset } else { Event::End }));
            }
        }
    }

    /// When anything happens next.
    fn next(&self) -> Option<Instant> {
        let next = |wire: &Rc<RefCell<Wire>>| {
            let wire = wire.borrow();
            let next = if wire.edge { Some(now()) } else { wire.events.front().map(|(at, _)| *at) };
            next.filter(|_| !wire.dropped)
        };
        let dies = match self.kind {
            Kind::Dying { at, .. } => Some(self.at(at)).filter(|at| now() < *at),
            _ => None,
        };
        let signals = self.signals.front().map(|at| self.at(*at));
        let mail = self.mailboxes.iter().filter_map(|mailbox| mailbox.borrow().next());
        self.wires.iter().filter_map(next).chain(mail).chain(dies).chain(signals).min()
    }
}

/// The generator's end of a connection.
struct Socket {
    wire: Rc<RefCell<Wire>>,
    net: Rc<RefCell<Net>>,
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wire = &mut *self.wire.borrow_mut();
        wire.advance();
        if wire.readable.is_empty() {
            return match wire.end {
                None => Err(Io::WouldBlock.into()),
                Some(Io::UnexpectedEof) => Ok(0),
                Some(kind) => Err(kind.into()),
            };
        }
        let most = into.len().min(wire.readable.len());
        let rng = &mut self.net.borrow_mut().rng;
        let count = if rng.u8(..4) == 0 { rng.usize(1..=most) } else { most };
        wire.readable.read_exact(&mut into[..count])?;
        let read = wire.read() + count as u64;
        wire.reads.push((read, now()));
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wire = &mut *self.wire.borrow_mut();
        wire.advance();
        if wire.end == Some(Io::ConnectionReset) {
            return Err(Io::ConnectionReset.into());
        }
        let count = bytes.len().min(BUFFER - wire.on_its_way);
        let net = &mut *self.net.borrow_mut();
        net.partial += u64::from(count < bytes.len());
        if count == 0 {
            return Err(Io::WouldBlock.into());
        }
        wire.on_its_way += count;
        let written = wire.written() + count as u64;
        wire.writes.push((written, now()));
        if !wire.lost {
            net.serve(wire, bytes[..count].to_vec());
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        let wire = &mut *self.wire.borrow_mut();
        let kept = match self.net.borrow().kind {
            Kind::KeepingOpen(kept) => kept,
            _ => Duration::from_micros(50),
        };
        let at = (now() + kept).max(wire.busy_until);
        wire.events.push_back((at, Event::End));
        Ok(())
    }

    fn established(&mut self) -> io::Result<bool> {
        let wire = &mut *self.wire.borrow_mut();
        wire.advance();
        match wire.established {
            Some(false) => Err(Io::ConnectionRefused.into()),
            established => Ok(established.is_some()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.wire.borrow_mut().dropped = true;
    }
}

struct Simulated(Rc<RefCell<Net>>);

impl World for Simulated {
    type Stream = Socket;
    type Port = datagrams::Socket;

    fn clock() -> fn() -> Instant {
        read_clock
    }

    fn dial(&mut self, _: u32, token: Token) -> io::Result<Socket> {
        let mut net = self.0.borrow_mut();
        let event = if net.is_up() { Event::Open } else { Event::Refused };
        let opened = now() + Duration::from_micros(net.rng.u64(10..200));
        let mut events = VecDeque::from([(opened, event)]);
        if net.kind == Kind::Dropping {
            events.push_back((opened + Duration::from_micros(net.rng.u64(..200)), Event::End));
        }
        let wire = Rc::new(RefCell::new(Wire {
            token,
            serial: net.wires.len() as u64,
            opened: now(),
            events,
            edge: false,
            established: None,
            readable: VecDeque::new(),
            end: None,
            on_its_way: 0,
            busy_until: opened,
            lost: net.kind == Kind::Dropping,
            dropped: false,
            writes: Vec::new(),
            reads: Vec::new(),
        }));
        net.wires.push(wire.clone());
        drop(net);
        Ok(Socket { wire, net: self.0.clone() })
    }

    fn bind(&mut self, index: u32, token: Token) -> io::Result<(datagrams::Socket, SocketAddr)> {
        let mailbox = Rc::new(RefCell::new(Mailbox::new(token, index)));
        self.0.borrow_mut().mailboxes.push(mailbox.clone());
        Ok((datagrams::Socket { mailbox, net: self.0.clone() }, datagrams::SERVER))
    }

    fn addresses(&self) -> Vec<String> {
        vec!["127.0.0.1:7777".to_owned()]
    }

    fn wait(&mut self, sleep: Duration, ready: &mut Vec<Readiness>) -> io::Result<(Instant, Option<Request>)> {
        let mut net = self.0.borrow_mut();
        net.polls += 1;
        assert!(net.polls < net.max_polls, "it does not end");
        let wake = now() + sleep.max(POLL);
        set_now(net.next().map_or(wake, |next| next.min(wake)));
        let at = now() - net.began;
        if let Some((_, length)) = net.stalls.pop_front_if(|(from, _)| *from <= at) {
            net.stalled += length;
            let began = now();
            net.stood_still.push((began, length));
            set_now(began + length);
        }
        net.die();
        for wire in &net.wires {
            let wire = &mut *wire.borrow_mut();
            wire.advance();
            if std::mem::take(&mut wire.edge) && !wire.dropped {
                let (token, read_closed) = (wire.token, wire.end.is_some());
                ready.push(Readiness { token, readable: true, writable: true, read_closed, urgent: false });
            }
        }
        ready.extend(net.mailboxes.iter().filter_map(|mailbox| mailbox.borrow_mut().readiness()));
        let at = now() - net.began;
        let signal = net.signals.pop_front_if(|signal| *signal <= at);
        Ok((now(), signal.map(|_| Request::Stop(2))))
    }
}

/// One message, as the world saw it.
struct Message {
    written: Nanos,
    /// `None`: its reply was never read whole.
    read: Option<Nanos>,
}

/// All messages of which any byte was written.
fn messages(net: &Net, config: &Config, time: impl Fn(Instant) -> Nanos) -> Vec<Message> {
    let sizes = Sizes::new(config.size.0, config.size.1, config.seed);
    let mut messages = Vec::new();
    for wire in &net.wires {
        let wire = wire.borrow();
        let (mut begin, mut writes, mut reads) = (0, wire.writes.iter().peekable(), wire.reads.iter().peekable());
        for number in 0.. {
            let end = begin + sizes.of(wire.serial, number);
            while writes.next_if(|(written, _)| *written <= begin).is_some() {}
            while reads.next_if(|(read, _)| *read < end).is_some() {}
            let Some((_, written)) = writes.peek() else { break };
            messages.push(Message { written: time(*written), read: reads.peek().map(|(_, at)| time(*at)) });
            begin = end;
        }
    }
    messages
}

/// A world and a configuration.
fn draw(rng: &mut Rng) -> (Config, Kind, VecDeque<(Duration, Duration)>, VecDeque<Duration>) {
    let millis = |rng: &mut Rng, range: std::ops::Range<u64>| Duration::from_millis(rng.u64(range));
    let connections = rng.u64(1..7);
    let timeout = rng.u64(60..400);
    let duration = rng.u64(100..600);
    let datagrams = rng.u8(..4) == 0;
    let search = rng.u8(..48) == 0;
    let address = if datagrams { "udp:127.0.0.1:7777" } else { "127.0.0.1:7777" };
    let mut flags = format!("bench {address} -c {connections} --timeout {timeout}ms --seed {}", rng.u8(..));
    flags += &format!(" --warm-up {}ms", [0, 20, 100][rng.usize(..3)]);
    let size = rng.usize(..3);
    flags += [[" -s 1", " -s 64", " -s 1..300"], [" -s 8", " -s 64", " -s 8..300"]][usize::from(datagrams)][size];
    if search {
        let criterion = format!("p{}<{}ms", [50, 90, 99][rng.usize(..3)], rng.u64(5..timeout));
        flags += &format!(" --find-rate {criterion} -t 50ms -r {}", rng.u64(100..1000));
    } else if rng.bool() {
        flags += &format!(" -r {}", [50, 400, 2000][rng.usize(..3)]);
    } else {
        flags += &format!(" -d {}", rng.u64(1..6));
    }
    match rng.u8(..4) {
        _ if search => {}
        0 => flags += &format!(" -n {}", rng.u64(1..200)),
        1 => flags += &format!(" -n {} -t {duration}ms", rng.u64(1..400)),
        _ => flags += &format!(" -t {duration}ms"),
    }
    if rng.u8(..3) == 0 && !datagrams {
        flags += &format!(" --reconnect {}", rng.u64(1..20));
    }
    let kind = match rng.u8(..12) {
        // One without a limit would be searched for very long.
        0..8 if search => Kind::Capped((100.0 + 1400.0 * rng.f64()) * [1.0, 64.0, 150.0][size]),
        8..10 if search => Kind::Deaf(rng.u64(..connections)),
        _ if search => Kind::Dying { at: millis(rng, 1..500), back: Duration::from_secs(3600), reset: rng.bool() },
        6..8 if datagrams => {
            let late = millis(rng, 0..2 * timeout);
            Kind::Lossy { lost: 0.3 * rng.f64(), repeated: 0.3 * rng.f64(), late }
        }
        0 => Kind::Slow(millis(rng, 1..timeout)),
        1 => {
            let from = millis(rng, 0..500);
            Kind::Frozen(from, from + millis(rng, 1..600))
        }
        2 => Kind::Capped(10f64.powf(2.0 + 4.0 * rng.f64())),
        3 | 4 => {
            let at = millis(rng, 1..500);
            let back = if rng.bool() { Duration::from_secs(3600) } else { at + millis(rng, 1..300) };
            Kind::Dying { at, back, reset: rng.bool() }
        }
        5 => Kind::Lying(millis(rng, 0..400)),
        6 => Kind::Deaf(rng.u64(..connections)),
        7 => Kind::Dropping,
        8 => Kind::KeepingOpen(millis(rng, 0..3000)),
        _ => Kind::Honest,
    };
    let stalls = (0..[0, 0, 0, 1, 2][rng.usize(..5)]).map(|_| (millis(rng, 0..500), millis(rng, 1..400)));
    let mut stalls: Vec<_> = stalls.collect();
    stalls.sort();
    let signals = match rng.u8(..16) {
        0 => vec![Duration::from_micros(rng.u64(..400))],
        1 => vec![millis(rng, 0..700)],
        _ => Vec::new(),
    };
    (Config::of_flags(&flags), kind, stalls.into(), signals.into())
}

fn simulate(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (config, kind, stalls, signals) = draw(&mut rng);
    if config.check().is_err() {
        return;
    }
    NOW.set(Some(Instant::now() + Duration::from_secs(1)));
    let (quiet, patient) = (stalls.is_empty(), signals.is_empty());
    let net = Rc::new(RefCell::new(Net {
        rng,
        kind,
        // A closed loop against a fast server makes very many messages, which takes long to compute.
        hop: if config.rate.is_some() { 60 } else { 6000 },
        began: now(),
        wires: Vec::new(),
        mailboxes: Vec::new(),
        refused: 0,
        repeated: 0,
        busy_until: now(),
        lied: false,
        partial: 0,
        polls: 0,
        max_polls: if config.find_rate.is_some() { 20 * MAX_POLLS } else { MAX_POLLS },
        stalls,
        stalled: Duration::ZERO,
        stood_still: Vec::new(),
        signals,
    }));
    let datagrams = matches!(config.address, Address::Udp(_));
    let mut driver = Driver::new(&config, Simulated(net.clone()), datagrams, 10_000, Progress::hidden());
    let Ok(opened) = open(&mut driver) else {
        // Only one that does not listen cannot be connected to.
        return assert!(matches!(kind, Kind::Dying { .. }), "{kind:?}");
    };
    if let Some(criterion) = &config.find_rate {
        return check_search(&config, criterion, driver, opened, kind, quiet && patient);
    }
    let begin = driver.load_mut().clock.read();
    let outcome = driver.stage(&Pace::of(&config)).unwrap();
    let end = driver.load_mut().clock.read();
    let net = &*net.borrow();
    let time = |at: Instant| driver.load().clock.at(at);

    check_end(&config, &outcome, end - begin, net, time);
    let messages = if datagrams { datagrams::messages(net, time) } else { messages(net, &config, time) };
    check_account(&config, &outcome, messages, net, kind);
    check_verdict(&config, &outcome, kind, (quiet, patient, net.lied));

    let kept = verdict::rate(&outcome).is_none_or(|rate| rate.kept);
    let (errors, cut) = (outcome.errors.clone(), outcome.cut);
    let run = assemble(&config, &driver, opened, outcome, None);
    let whole = run.connections.opened == config.connections as u64;
    let expected = match () {
        () if !errors.is_empty() || !whole || run.messages.replies == 0 || cut == Some(Cut::NoConnection) => 1,
        () if !kept => 3,
        () => 0,
    };
    assert_eq!(run.exit_code(), expected, "{errors:?}");
    assert!(run.messages.sent + run.messages.missed == run.outcomes.due && run.rate.is_finite());
}

/// It ended in time.
fn check_end(config: &Config, outcome: &Outcome, took: Nanos, net: &Net, time: impl Fn(Instant) -> Nanos) {
    let ledger = &outcome.ledger;
    let slack = nanos(net.stalled) + 40_000_000;
    let window = ledger.to() - ledger.from();
    let bound = nanos(config.warm_up) + window + nanos(config.timeout) + slack;
    assert!(took <= bound, "it took {took} ns for a window of {window} ns");
    if let Some(length) = config.length() {
        assert!(
            window <= nanos(length) && (outcome.cut.is_some() || config.messages.is_some() || window == nanos(length))
        );
    }
    // A stall is noticed, if it did not begin in a sleep that would have been as long.
    let longest = outcome.stalls.gaps().max();
    for (from, length) in net.stood_still.iter().map(|(from, length)| (time(*from), nanos(*length))) {
        let of_window = from >= ledger.from() && from + length < ledger.to();
        assert!(!of_window || longest + 12_000_000 > length, "the longest gap is {longest}, and one was {length} ns");
    }
}

/// The ledger tells what the world has seen.
fn check_account(config: &Config, outcome: &Outcome, all: Vec<Message>, net: &Net, kind: Kind) {
    let ledger = &outcome.ledger;
    let outcomes = ledger.outcomes;
    assert_eq!(outcomes.sum(), outcomes.due, "{outcomes:?}");
    assert_eq!(ledger.response().len(), outcomes.due);
    let sent = outcomes.due - outcomes.never_sent.sum();
    let open_loop = ledger.service().is_some();
    let measured = ledger.service().unwrap_or(ledger.response());
    assert_eq!(measured.len(), sent);
    assert_eq!(measured.bounds(), sent - outcomes.all_answered());
    if let Some(limit) = config.messages {
        assert!(outcomes.due <= limit);
        assert!(outcomes.due == limit || outcome.cut.is_some() || config.length().is_some());
    }

    // What was begun, and waited before a full socket, was not written when it was begun.
    if net.partial > 0 || kind == Kind::Dropping {
        return;
    }
    let to = if open_loop { Nanos::MAX } else { ledger.to() };
    let near = |at: Nanos, edge: Nanos| at.abs_diff(edge) <= SLACK;
    let fuzz = all.iter().filter(|message| near(message.written, ledger.from()) || near(message.written, to)).count();
    let of_window: Vec<_> = all.iter().filter(|message| (ledger.from()..to).contains(&message.written)).collect();
    // A byte that is written to a connection that was just lost is not always seen as written.
    let fuzz = fuzz + if matches!(kind, Kind::Dying { .. }) { 6 * config.depth as usize + 6 } else { 0 };
    // Nor was a datagram sent at the call that told of the refusal of another one.
    let fuzz = fuzz + net.refused as usize;
    assert!(of_window.len().abs_diff(sent as usize) <= fuzz, "{} were written, {sent} sent", of_window.len());
    if matches!(kind, Kind::Lying(_) | Kind::Dying { .. }) {
        return;
    }
    let answered = of_window.iter().filter(|message| message.read.is_some()).count();
    let told = outcomes.all_answered() as usize;
    let timeout = nanos(config.timeout);
    if net.mailboxes.is_empty() {
        assert!(answered.abs_diff(told) <= fuzz, "{answered} were answered, {outcomes:?}");
    } else {
        // What came after it was given up is no answer.
        let in_time = |message: &&&Message| message.read.is_some_and(|read| read - message.written + SLACK <= timeout);
        let in_time = of_window.iter().filter(in_time).count();
        assert!(
            (in_time..=answered).contains(&told) || told.abs_diff(in_time).min(told.abs_diff(answered)) <= fuzz,
            "{in_time} were answered in time, {answered} at all, {outcomes:?}"
        );
        let late =
            all.iter().filter(|message| message.read.is_some_and(|read| read - message.written + SLACK > timeout));
        assert!(ledger.duplicates <= net.repeated + late.count() as u64, "{} duplicates", ledger.duplicates);
    }

    let times = of_window.iter().map(|message| message.read.map_or(Nanos::MAX, |read| read - message.written));
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    for percentile in PERCENTILES {
        if times.is_empty() || measured.len() == 0 {
            break;
        }
        let rank = ((percentile / 100.0 * measured.len() as f64).ceil() as usize).max(1) - 1;
        let at = |rank: usize| times[rank.min(times.len() - 1)];
        let (low, high) = (at(rank.saturating_sub(fuzz + 1)), at(rank + fuzz + 1));
        match measured.quantile(percentile) {
            Quantile::Is(value) => {
                let least = (low - low / 50).saturating_sub(SLACK);
                let most = high.saturating_add(high / 50).saturating_add(SLACK);
                assert!((least..=most).contains(&value), "p{percentile} is {value}, and not {low} to {high}");
            }
            Quantile::AtLeast(value) => {
                assert!(value <= high.saturating_add(high / 50).saturating_add(SLACK), "p{percentile} {value} {high}");
            }
        }
    }
    // Answers that are as late as that are late, and no others.
    if !open_loop {
        let beyond = |limit: Nanos| times.iter().filter(|time| **time != Nanos::MAX && **time > limit).count();
        // One that was answered at the limit itself, as exactly as can be told, may be either.
        let (late, at_most) = (beyond(timeout + SLACK), beyond(timeout.saturating_sub(SLACK)));
        let told = outcomes.answered_late as usize;
        let given_up = if net.mailboxes.is_empty() { 0 } else { late };
        assert!(
            told <= at_most + fuzz && told + given_up + fuzz >= late,
            "{late} to {at_most} late, {outcomes:?}, of {timeout}: {times:?}"
        );
    }
}

/// What is said of the server is what it was.
fn check_verdict(config: &Config, outcome: &Outcome, kind: Kind, (quiet, patient, lied): (bool, bool, bool)) {
    let Outcome { ledger, errors, cut, .. } = outcome;
    let datagrams = matches!(config.address, Address::Udp(_));
    let outcomes = ledger.outcomes;
    let rate = verdict::rate(outcome);
    assert_eq!(rate.is_some(), config.rate.is_some());
    assert_eq!(*cut == Some(Cut::Interrupted), !patient && cut.is_some() && *cut != Some(Cut::NoConnection));
    match kind {
        Kind::Honest | Kind::KeepingOpen(_) if quiet => {
            assert!(errors.is_empty(), "{errors:?}");
            assert!(cut.is_none() || !patient, "{cut:?}");
            assert_eq!(outcomes.answered, outcomes.due, "{outcomes:?}");
            assert!(rate.is_none_or(|rate| rate.kept) || outcomes.due == 0);
        }
        Kind::Lossy { .. } => assert!(errors.is_empty(), "{errors:?}"),
        Kind::Lying(_) if lied && patient && quiet => {
            assert!(errors.contains_key(&ErrorKind::Mismatch), "{errors:?}");
        }
        Kind::Deaf(0) | Kind::Dropping => {
            assert_eq!(outcomes.all_answered(), 0);
            assert!(!errors.is_empty() || outcomes.due == 0 || !patient || datagrams);
        }
        Kind::Capped(bytes) if quiet && patient && config.rate.is_some() => {
            let asked = config.rate.unwrap_or_default() * (config.size.0 + config.size.1) as f64 / 2.0;
            if let Some(rate) = rate
                && asked > 2.0 * bytes
                && ledger.seconds() > 0.2
                && outcomes.due > 20
                && (config.messages.is_none() || outcomes.answered < outcomes.due)
            {
                assert!(!rate.kept && rate.limit != Some(Limit::Generator), "{rate:?}: {outcomes:?}");
            }
        }
        _ => {}
    }
    if quiet {
        assert_eq!(outcomes.never_sent.generator_behind, 0, "{outcomes:?}");
    }
}

/// A search ends, and what it finds is what the server can do.
fn check_search(
    config: &Config,
    criterion: &Criterion,
    mut driver: Driver<Simulated>,
    opened: super::Opened,
    kind: Kind,
    undisturbed: bool,
) {
    let Ok((outcome, search)) = search::search(&mut driver, config, criterion) else {
        return assert!(matches!(kind, Kind::Dying { .. }) || !undisturbed, "{kind:?}");
    };
    let (outcomes, errors, cut) = (outcome.ledger.outcomes, outcome.errors.clone(), outcome.cut);
    assert_eq!(outcomes.sum(), outcomes.due, "{outcomes:?}");
    let run = assemble(config, &driver, opened, outcome, Some(search));
    let search = run.search.as_ref().unwrap();
    for step in search.steps.iter().filter(|step| step.holds) {
        // A hundredth of the messages may be missing, and three in any case.
        let missing = (step.response.count as f64 * 0.01).max(3.0);
        assert!(step.reached > 0.4 * step.rate && step.response.bounds as f64 <= missing, "{step:?}");
    }
    if matches!(kind, Kind::Dying { .. }) {
        // Without a server it ends: there is no step more than the one in which that is found out.
        let in_vain = search.steps.iter().filter(|step| step.reached == 0.0).count();
        assert!(in_vain <= 1, "{in_vain} steps without a server");
        assert!(in_vain == 0 || run.exit_code() == 1, "{}", run.exit_code());
    }
    match (search.holds_at, search.fails_at) {
        (Some(holds), Some(fails)) => {
            assert!(holds < fails, "{holds} {fails}");
            assert!(search.ended.is_some() || fails <= holds * 1.06 || search.steps.len() >= 60, "{holds} {fails}");
            if let Kind::Capped(bytes) = kind
                && undisturbed
            {
                let capacity = bytes * 2.0 / (config.size.0 + config.size.1) as f64;
                // A step has a hundred messages or so, and their sizes vary.
                let (over, under) = if config.size.0 == config.size.1 { (1.1, 0.85) } else { (1.3, 0.7) };
                // What it takes for a message alone may be more than the criterion allows.
                let is_tight = (criterion.nanoseconds() as f64) < 30e9 / capacity;
                assert!(
                    holds < over * capacity && (fails > under * capacity || is_tight),
                    "{holds} to {fails}, and not {capacity}"
                );
            }
        }
        (None, _) => assert_ne!(run.exit_code(), 0),
        _ => {}
    }
    if matches!(kind, Kind::Deaf(0)) {
        assert_eq!(search.holds_at, None);
    }
    if search.holds_at.is_some() && errors.is_empty() && cut.is_none() && search.ended.is_none() {
        assert_eq!(run.exit_code(), 0);
    }
}

/// Plays a seed, and says what it was if that fails.
fn play(seed: u64) {
    panic::catch_unwind(AssertUnwindSafe(|| simulate(seed))).unwrap_or_else(|panic| {
        let mut rng = Rng::with_seed(seed);
        let (config, kind, stalls, signals) = draw(&mut rng);
        eprintln!("{kind:?}, stalls {stalls:?}, signals {signals:?}, {config:?}");
        eprintln!("play it again: ECHOLOOP_SEED={seed} cargo test --lib bench::simulation");
        panic::resume_unwind(panic)
    });
}

#[test]
fn simulated_runs_tell_the_truth() {
    let seeds = seeds(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let seeds = seeds.clone().skip(thread as usize).step_by(threads as usize);
            scope.spawn(move || seeds.for_each(play));
        }
    });
}

/// Runs that are simulated.
const SEEDS: u64 = 6000;

#[test]
#[ignore = "runs for as long as it is told"]
fn simulated_runs_for_as_long_as_is_asked() {
    endless_seeds().for_each(play);
}
