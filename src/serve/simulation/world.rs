//! The service and the network around it: what the network does, how the loop runs, and what must hold.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mio::Token;
use rustix::io::Errno;

use super::kernel::{self, Backlog, Call, Fault, Kernel, Kind, Listener, Pattern, Port, Shared, Socket, Tally, Wire};
use crate::reactor::scripted::read_closed;
use crate::reactor::socket::Origin;
use crate::reactor::{CLOSE_TIMEOUT, LINGER_TIMEOUT, Readiness, Settings, Source};
use crate::serve::Config;
use crate::serve::admin::{Admin, StatusSource};
use crate::serve::printer::Printer;
use crate::serve::service::Service;
use crate::serve::tokens;
use crate::simulation::tape::{Steps, Tape};

/// Connections that a simulated peer population may have open at once.
const POPULATION: usize = 12;

/// Steps of a storm at most.
const STORM: u32 = 120;

const TERMINATOR: &str = "bye";

/// The longest pause after an error (see `reactor::pause`).
const PAUSE: Duration = Duration::from_millis(100);

/// How long a proxy may take to say for whom it speaks, and a client to ask.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection of HTTP that has asked nothing for so long may be closed in favour of others.
const GIVES_WAY: Duration = Duration::from_secs(1);

const SIZES: [u64; 5] = [1 << 16, 1 << 8, 1 << 12, 1 << 18, 1 << 21];

/// What the network can do in a step, and how likely it is at least: a run has its own weights.
const ACTIONS: [(Action, u32); 14] = [
    (Action::Nothing, 1),
    (Action::Connect, 10),
    (Action::Send, 30),
    (Action::Receive, 25),
    (Action::End, 5),
    (Action::Reset, 2),
    (Action::Vanish, 1),
    (Action::Wait, 6),
    (Action::Descriptors, 2),
    (Action::Urgent, 4),
    (Action::Datagram, 6),
    (Action::Ask, 8),
    (Action::Fail, 2),
    (Action::Stop, 1),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    Connect,
    Send,
    Receive,
    End,
    Reset,
    Vanish,
    Wait,
    Descriptors,
    Urgent,
    Datagram,
    Ask,
    Fail,
    Stop,
}

/// The service, and the network around it.
pub(super) struct World {
    kernel: Shared,
    service: Service<Socket, Port>,
    config: Config,
    max_connections: usize,
    max_admin: usize,
    weights: Vec<u32>,
    storm: usize,
    /// It has been told to stop, and begins with it then.
    delayed: Option<Instant>,
    stopped: Option<Instant>,
    /// When the loop runs next, if the poll tells nothing before.
    wakes: Option<Instant>,
    /// Turns in a row in which nothing got on, at one time.
    idle_turns: u32,
    /// Keeps a reader of what is printed from reading.
    _reader: Option<mpsc::Sender<()>>,
}

/// Standard output that nobody reads, as long as the other end is there.
struct Unread(mpsc::Receiver<()>);

impl io::Write for Unread {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn address(last: u32) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last as u8).into()
}

impl World {
    pub fn new(mut tape: Tape, pattern: &Rc<Pattern>, fault: Option<Fault>, tell: bool) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let mut config = Config {
            terminator: (tape.below(4) == 1).then(|| TERMINATOR.to_owned()),
            message_limit: (tape.below(6) == 1).then(|| 1 + u64::from(tape.below(3))),
            accept_limit: (tape.below(6) == 1).then(|| 1 + u64::from(tape.below(20))),
            idle_timeout: (tape.below(2) == 1).then(|| seconds(1 + tape.below(20))),
            drain_timeout: seconds((5 + tape.below(10)) % 10),
            stats_interval: (tape.below(8) == 1).then(|| seconds(1 + tape.below(5))),
            ..Config::default()
        };
        let access = &mut config.access;
        access.proxy_protocol = tape.below(4) == 1;
        access.deny = if tape.below(4) == 1 { vec![address(3).into()] } else { Vec::new() };
        access.max_per_source = (tape.below(4) == 1).then(|| 1 + tape.below(3) as usize);
        access.accept_rate = (tape.below(6) == 1).then(|| 1 + tape.below(5)).and_then(NonZeroU32::new);
        let max_connections = POPULATION - tape.below(POPULATION as u32) as usize;
        let max_admin = (tape.below(2) * (1 + tape.below(4))) as usize;
        let listeners = 1 + tape.below(2) as usize;
        let datagrams = tape.below(2) == 1;
        let printing = tape.below(8);
        let storm = tape.below(STORM) as usize;
        let weights = ACTIONS.iter().map(|&(_, weight)| weight * [1, 0, 4, 1][tape.below(4) as usize]).collect();
        config.stop_delay = seconds([0, 0, 2, 5][tape.below(4) as usize]);
        let (reader, unread) = mpsc::channel();
        let printer = match printing {
            1 => Some(Printer::new(io::sink())),
            2 => Some(Printer::new(Unread(unread))),
            _ => None,
        };
        let printer = printer.map(|printer| Rc::new(RefCell::new(printer.expect("there is room for a thread"))));
        let mut service = Service::new(&config, max_connections, printer, Instant::now());
        let mut admin = Admin::new(max_admin);
        let mut kernel = Kernel::new(tape, pattern, fault, tell);
        kernel.frugal = config.idle_timeout.is_none();
        kernel.rules.proxied = access_has_proxy(&config);
        kernel.rules.denied = config.access.deny.first().map(|network| network.addr());
        kernel.rules.per_source = config.access.max_per_source;
        kernel.rules.rate = config.access.accept_rate.map(|rate| rate.get() as usize);
        kernel.tell(|| {
            format!(
                "options: terminator {:?}, message limit {:?}, accept limit {:?}, idle timeout {:?}, stop delay {:?}, drain \
                 timeout {:?}, max connections {max_connections}, HTTP {max_admin}, print {printing}, proxy {}, deny {:?}, max per \
                 source {:?}, accept rate {:?}",
                config.terminator,
                config.message_limit,
                config.accept_limit,
                config.idle_timeout,
                config.stop_delay,
                config.drain_timeout,
                config.access.proxy_protocol,
                config.access.deny,
                config.access.max_per_source,
                config.access.accept_rate
            )
        });
        let kernel = Rc::new(RefCell::new(kernel));
        let listen = |kind, token| {
            let mut here = kernel.borrow_mut();
            let (waiting, number) = (VecDeque::new(), here.backlogs.len());
            let (armed, listening, closed) = (false, true, false);
            here.backlogs.push(Backlog { kind, token, waiting, armed, listening, closed, fails: None, refused: None });
            Ok(Listener(kernel.clone(), number))
        };
        for _ in 0..listeners {
            service.streams.listen(|token| listen(Kind::Echo, token)).expect("it cannot fail");
        }
        if max_admin > 0 {
            admin.reactor.listen(|token| listen(Kind::Http, token)).expect("it cannot fail");
            service.admin = Some(admin);
        }
        if datagrams {
            let make = |token| {
                let mut here = kernel.borrow_mut();
                here.post.token = Some(token);
                here.post.open = true;
                Ok(Port(kernel.clone()))
            };
            service.datagrams.add(make).expect("it cannot fail");
        }
        // After the service has begun, so that its whole milliseconds are the clock's.
        let now = Instant::now();
        (kernel.borrow_mut().began, kernel.borrow_mut().now) = (now, now);
        let (wakes, idle_turns) = (Some(kernel.borrow().now), 0);
        let _reader = Some(reader);
        World {
            kernel,
            service,
            config,
            max_connections,
            max_admin,
            weights,
            storm,
            delayed: None,
            stopped: None,
            wakes,
            idle_turns,
            _reader,
        }
    }

    pub fn steps(&self) -> Steps {
        self.kernel.borrow().tape.steps.clone()
    }

    pub fn story(&self) -> Vec<String> {
        self.kernel.borrow().told.clone().unwrap_or_default()
    }

    pub fn calls(&self) -> [u64; Call::ALL.len()] {
        self.kernel.borrow().calls
    }

    pub fn run(&mut self) -> Tally {
        self.settle(1000);
        let mut number = 0;
        while self.kernel.borrow_mut().tape.advance(self.storm) {
            number += 1;
            self.step(number);
        }
        self.calm();
        self.finish();
        self.kernel.borrow().tally
    }

    /// The network does one thing, and then the loop runs until it rests; or not so far, or not at all.
    fn step(&mut self, number: usize) {
        let what = ACTIONS[self.kernel.borrow_mut().tape.weighted(&self.weights)].0;
        let (mut stops, mut waits) = (false, None);
        let told = match what {
            Action::Stop => {
                stops = self.stopped.or(self.delayed).is_none();
                "a stop".to_owned()
            }
            Action::Wait => {
                let kernel = &mut *self.kernel.borrow_mut();
                let time = Duration::from_millis(1 << kernel.tape.below(15));
                waits = Some(time);
                format!("{time:?} pass")
            }
            what => stir(&mut self.kernel.borrow_mut(), what),
        };
        let pace = self.kernel.borrow_mut().tape.below(4);
        let how = ["", "; one turn", "; the loop does not run", "; an event that is not so"][pace as usize];
        self.kernel.borrow_mut().tell(|| format!("{number:3}. {told}{how}"));
        if stops {
            self.stop();
        }
        if let Some(time) = waits {
            if pace == 0 {
                self.wait(time);
            } else {
                self.kernel.borrow_mut().now += time;
            }
        }
        match pace {
            0 => self.settle(1000),
            1 if self.is_due() => self.turn(None),
            3 => {
                let stale = {
                    let kernel = &mut *self.kernel.borrow_mut();
                    kernel.tally.stale_events += 1;
                    let token = kernel.tape.below(POPULATION as u32) as usize;
                    let token = Token(token + [0, tokens::ADMIN][kernel.tape.below(2) as usize]);
                    let bits = kernel.tape.below(8);
                    let (readable, writable, urgent) = (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
                    let readiness = Readiness { readable, writable, urgent, ..read_closed(token) };
                    let those = kernel.wires.iter_mut().filter(|wire| wire.is_open() && wire.token == Some(token));
                    those.for_each(|wire| wire.note(&readiness));
                    readiness
                };
                self.turn(Some(stale));
            }
            _ => {}
        }
    }

    /// Whether the poll would return now.
    fn is_due(&self) -> bool {
        let kernel = self.kernel.borrow();
        kernel.is_armed() || self.wakes.is_some_and(|wakes| wakes <= kernel.now)
    }

    /// The loop runs until it sleeps.
    fn settle(&mut self, turns: usize) {
        for _ in 0..turns {
            if !self.is_due() || self.service.is_done() {
                return;
            }
            self.turn(None);
        }
        panic!("the loop does not come to rest");
    }

    /// Time passes, and the loop runs when it is due.
    fn wait(&mut self, time: Duration) {
        let until = self.kernel.borrow().now + time;
        loop {
            self.settle(1000);
            let kernel = &mut *self.kernel.borrow_mut();
            match self.wakes.map(|wakes| whole_millis(kernel.began, wakes)) {
                Some(wakes) if wakes <= until && !self.service.is_done() => kernel.now = wakes,
                _ => {
                    kernel.now = until;
                    return;
                }
            }
        }
    }

    fn turn(&mut self, stale: Option<Readiness>) {
        let mut ready = self.kernel.borrow_mut().poll();
        ready.extend(stale);
        if ready.len() > 1 && self.kernel.borrow_mut().tape.below(2) == 1 {
            ready.reverse();
        }
        let now = self.kernel.borrow().now;
        if let Some(due) = self.delayed.filter(|&due| now >= due) {
            self.drains(due);
        }
        self.kernel.borrow_mut().interrupted = 0;
        let (before, progress) = (self.begin(), self.kernel.borrow().progress);
        self.service.turn_with(now, ready);
        let sleeps = self.service.sleep(now);
        {
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.tally.turns += 1;
            kernel.tell(|| format!("    turn, then sleeps {sleeps:?}"));
            let rests = kernel.progress > progress || sleeps != Some(Duration::ZERO);
            self.idle_turns = if rests { 0 } else { self.idle_turns + 1 };
            assert!(self.idle_turns < 20, "the loop spins: turn after turn, and nothing gets on");
        }
        self.wakes = sleeps.map(|sleep| now + sleep);
        self.check(now, &before);
        if sleeps != Some(Duration::ZERO) && !self.service.is_done() {
            self.check_asleep(now, sleeps);
        }
    }

    fn stop(&mut self) {
        let now = self.kernel.borrow().now;
        self.delayed = Some(now + self.config.stop_delay);
        if self.config.stop_delay.is_zero() {
            self.drains(now);
        }
        let end = self.service.stop(now);
        assert_eq!(end, now + self.config.stop_delay + self.config.drain_timeout);
        self.wakes = Some(now);
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.tally.stops += 1;
        kernel.progress += 1;
    }

    /// Its stop begins, at `began`: who is connected by now is served, and nobody else.
    fn drains(&mut self, began: Instant) {
        self.delayed = None;
        self.stopped = Some(began);
        let looks = self.looks();
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.frugal = false;
        if self.config.accept_limit.is_none() {
            for backlog in kernel.backlogs.iter().filter(|backlog| backlog.kind == Kind::Echo) {
                backlog.waiting.iter().for_each(|&index| kernel.wires[index].promised = true);
            }
        }
        for wire in kernel.wires.iter_mut().filter(|wire| !looks && wire.admitted && !wire.closed && !wire.shut) {
            wire.due = wire.payload(wire.sent);
        }
    }

    /// Whether it looks for messages, and may close after one.
    fn looks(&self) -> bool {
        self.config.terminator.is_some() || self.config.message_limit.is_some()
    }

    /// Who is there when a turn begins.
    fn begin(&mut self) -> Vec<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.wires.iter_mut().for_each(|wire| {
            wire.read_before = wire.read;
            wire.known = wire.token.is_some();
        });
        (0..kernel.wires.len()).filter(|&index| kernel.wires[index].is_open()).collect()
    }

    /// What must hold after every turn.
    fn check(&mut self, now: Instant, before: &[usize]) {
        let kernel = &mut *self.kernel.borrow_mut();
        let (open, admin) = (kernel.open(Kind::Echo), kernel.open(Kind::Http));
        assert_eq!(self.service.streams.len(), open, "each open socket has its connection, and no other");
        let by_listener = self.service.streams.listeners().iter().map(|listener| listener.open).sum::<u64>();
        assert_eq!(by_listener, open as u64, "each open socket is counted at its listener");
        let looked_at = self.service.admin.as_ref().map_or(0, |admin| admin.reactor.len());
        assert_eq!(looked_at, admin, "each open socket of HTTP has its connection, and no other");
        assert!(open <= self.max_connections && admin <= self.max_admin, "there are more connections than may be");
        if self.delayed.is_some() {
            assert!(self.service.snapshot(now).stopping, "it has been told to stop, and tells nobody");
            let came = kernel.wires.iter().filter(|wire| !wire.known && wire.admitted).count();
            kernel.tally.came_during_delay += came as u64;
        }
        let told = self.stopped.or(self.delayed).is_some();
        assert_eq!(self.service.is_stopping(), told);
        let overdue = self.stopped.is_some_and(|stopped| now >= stopped + self.config.drain_timeout);
        assert!(!overdue || open == 0, "the drain timeout has passed, and connections are left");
        assert!(!kernel.broken_promise || overdue, "somebody who had connected before a stop is not served");
        if let Some(limit) = self.config.accept_limit {
            assert!(kernel.rules.admitted <= limit, "more came in than may");
        }
        for wire in kernel.wires.iter().filter(|wire| wire.refused) {
            assert!(wire.closed, "connection {} must not come in, and does", wire.number);
        }
        // Memory is bounded by one read each, and nothing is held for who is gone.
        let settings = Settings::default();
        let read_size = settings.max_read_size as u64;
        let is_held = |wire: &&Wire| wire.kind == Kind::Echo && wire.is_open() && !wire.shut;
        let held: u64 = kernel.wires.iter().filter(is_held).map(Wire::owed).sum();
        let waiting = self.service.streams.counters().waiting_bytes;
        if self.stopped.is_none() && !self.looks() {
            assert_eq!(waiting, held, "what was read and not echoed is what waits");
            assert!(kernel.wires.iter().filter(is_held).all(|wire| wire.owed() <= read_size));
        }
        // What comes after the last message, or after a stop, is read and thrown away.
        assert!(waiting <= held.min(open as u64 * read_size), "more waits than may");
        for &index in before {
            self.check_wire(kernel, index, now, overdue);
        }
        for wire in kernel.wires.iter().filter(|wire| !wire.known && wire.closed && !wire.refused) {
            let excused = overdue || wire.failed || wire.reset;
            assert!(excused, "connection {} may come in, and does not", wire.number);
        }
        for (number, &count) in kernel.post.answered.iter().enumerate() {
            assert!(count <= kernel.post.received[number], "datagram {number} is answered twice");
        }
    }

    /// Nobody is closed without a reason.
    fn check_wire(&self, kernel: &mut Kernel, index: usize, now: Instant, overdue: bool) {
        let settings = Settings::default();
        let wire = &kernel.wires[index];
        let (number, taken) = (wire.number, wire.read - wire.read_before);
        // The reactor counts whole milliseconds.
        let since = |then: Option<Instant>| now - then.expect("it was accepted") + Duration::from_millis(1);
        if wire.reset || wire.failed {
            return;
        }
        if wire.kind == Kind::Http {
            let asked = wire.asked().min(1) > wire.answered();
            let early = wire.closed && asked && since(wire.accepted_at) < GIVES_WAY;
            assert!(!early, "connection {number} has asked, and is closed without an answer");
            return;
        }
        // Who seems idle is served once more before it is closed.
        let services = 1 + u64::from(self.config.idle_timeout.is_some());
        let budget = services * (settings.read_budget + settings.max_read_size) as u64;
        assert!(taken <= budget, "connection {number} was read {taken} bytes in one turn");
        let told = wire.shut && !wire.aborted;
        assert!(!told || wire.echoed >= wire.due, "a stop left bytes of connection {number} unanswered");
        if self.stopped.is_some() {
            let told = wire.closed || wire.shut || wire.owed() > 0 || wire.unread() > 0;
            // One whose last read was as large as it could be is asked once more.
            let asked = self.service.sleep(now) == Some(Duration::ZERO);
            assert!(told || asked, "connection {number} is not told of the stop");
            let whole = wire.aborted || wire.owed() == 0 || self.looks() || !wire.closed;
            assert!(whole || wire.echoed >= wire.due, "connection {number} takes a part for the whole at a stop");
            return;
        }
        let last = wire.echoed.min(5);
        let last = kernel.pattern.piece(number, wire.echoed - last, last as usize);
        let bye = self.config.terminator.is_some() && last.trim_ascii_end().ends_with(TERMINATOR.as_bytes());
        let farewell = bye || self.config.message_limit.is_some_and(|limit| wire.echoed >= limit);
        assert!(!wire.shut || farewell, "connection {number} was sent its end after {last:?}");
        let whole = wire.echoed == wire.payload(wire.sent);
        if !wire.closed || wire.end_read && (whole || farewell || !wire.admitted) {
            kernel.tally.farewells += u64::from(wire.closed && wire.admitted && !whole);
            return;
        }
        if !wire.admitted {
            let told = wire.refused || wire.header_is_bad && wire.read > 0;
            let late = since(wire.accepted_at) >= HEADER_TIMEOUT;
            let idle = self.config.idle_timeout.is_some_and(|timeout| since(wire.moved_at) >= timeout);
            assert!(told || late || idle, "connection {number} is closed before it has said for whom it speaks");
            return;
        }
        // What is read after the last message is thrown away, and keeps nobody alive.
        let moved_at = if self.looks() { wire.sent_at } else { wire.moved_at };
        let quiet = since(moved_at);
        if wire.shut {
            let given = since(wire.shut_at);
            assert!(given >= LINGER_TIMEOUT || overdue, "connection {number} was given {given:?} to end");
            return;
        }
        assert!(wire.aborted || wire.owed() == 0, "connection {number} takes a part for the whole");
        if wire.aborted && self.looks() && since(wire.accepted_at) >= CLOSE_TIMEOUT {
            return; // its peer did not take what it was owed before the end
        }
        assert_eq!(wire.blocked_at, Some(now), "connection {number} was closed as idle, and was not asked");
        let idle = self.config.idle_timeout.is_some_and(|timeout| quiet >= timeout);
        assert!(idle, "connection {number} was closed after {quiet:?} of quiet");
        kernel.tally.idle_closes += 1;
    }

    /// What must hold when the loop would sleep: whoever has something to do will be told of it, and deadlines are kept.
    fn check_asleep(&self, now: Instant, sleeps: Option<Duration>) {
        let kernel = self.kernel.borrow();
        let wakes_by = |due: Instant, slack: Duration| sleeps.is_some_and(|sleep| now + sleep <= due + slack);
        let soon = Duration::from_millis(2);
        for wire in kernel.wires.iter().filter(|wire| wire.is_open() && !wire.armed) {
            let number = wire.number;
            assert!(!wire.reset, "connection {number} is reset, and nobody will see it");
            if wire.kind == Kind::Http {
                let waits = wire.asked().min(1) > wire.answered() && !wire.shut && !wire.no_space;
                assert!(!waits, "connection {number} has asked, and will get no answer");
                let asks = wire.asked() == wire.answered() && !wire.shut && wire.answered() == 0;
                let due = wire.accepted_at.expect("it was accepted") + REQUEST_TIMEOUT;
                assert!(!asks || wakes_by(due, soon), "connection {number} may take for ever to ask");
            }
            let owes = match wire.kind {
                Kind::Echo => wire.owed() > 0 && !wire.shut,
                Kind::Http => wire.no_space,
            };
            if owes {
                assert!(wire.no_space, "connection {number} has bytes to send, and no edge will come");
            } else {
                assert_eq!(wire.unread(), 0, "connection {number} has bytes to read, and no edge will come");
                assert!(!wire.ended, "connection {number} has ended, and no edge will come");
            }
        }
        for wire in kernel.wires.iter().filter(|wire| wire.is_open()) {
            let number = wire.number;
            if wire.shut {
                let due = wire.shut_at.expect("it is shut") + LINGER_TIMEOUT;
                assert!(wakes_by(due, CLOSE_TIMEOUT / 20), "connection {number} may linger for ever");
            } else if wire.kind == Kind::Echo {
                // One that is being closed has a deadline that is not known here.
                let may_close = self.looks() && wire.owed() > 0 || self.stopped.is_some();
                if let Some(timeout) = self.config.idle_timeout.filter(|_| !may_close) {
                    let due = wire.moved_at.expect("it was accepted") + timeout;
                    assert!(wakes_by(due, timeout / 20 + soon), "connection {number} may be idle for ever");
                }
                let due = wire.accepted_at.expect("it was accepted") + HEADER_TIMEOUT;
                let has_time = wire.admitted || wakes_by(due, soon);
                assert!(has_time, "connection {number} may take for ever to say for whom it speaks");
            }
        }
        assert!(self.delayed.is_none_or(|due| wakes_by(due, soon)), "a stop may never begin");
        if let Some(stopped) = self.stopped {
            assert!(wakes_by(stopped + self.config.drain_timeout, soon), "a stop may take for ever");
        }
        for (number, backlog) in kernel.backlogs.iter().enumerate() {
            if backlog.waiting.is_empty() || backlog.armed || !backlog.listening {
                continue;
            }
            if let Some(bound) = self.bound(&kernel, backlog) {
                let told = sleeps.is_some_and(|sleep| sleep <= bound);
                assert!(told, "somebody waits at listener {number} while there is room, and nobody will look");
            }
        }
        let post = &kernel.post;
        if post.open && !post.waiting.is_empty() && !post.armed {
            let told = post.failed && sleeps.is_some_and(|sleep| sleep <= PAUSE);
            assert!(told, "a datagram waits, and no edge will come");
        }
    }

    /// How long somebody who waits at a listener may have to at most, if it is possible to accept it.
    fn bound(&self, kernel: &Kernel, backlog: &Backlog) -> Option<Duration> {
        let open = kernel.open(backlog.kind);
        let room = match backlog.kind {
            Kind::Http => open < self.max_admin,
            Kind::Echo => {
                let undecided = kernel
                    .wires
                    .iter()
                    .filter(|wire| wire.kind == Kind::Echo && wire.is_open() && !wire.admitted && !wire.refused);
                let taken = kernel.rules.admitted + undecided.count() as u64;
                open < self.max_connections && self.config.accept_limit.is_none_or(|limit| taken < limit)
            }
        };
        let all = kernel.open(Kind::Echo) + kernel.open(Kind::Http);
        let possible = room && (all < kernel.descriptors || backlog.refused.is_some());
        let pauses = backlog.refused.is_some_and(|(_, were_open, _)| open >= were_open);
        possible.then_some(if pauses { PAUSE } else { Duration::ZERO })
    }

    /// The network becomes willing: errors end, peers read what there is, and within a second everybody has got what can
    /// be had. Then they close, and nobody may be left. Peers that have vanished do nothing still, unless only a word of
    /// theirs could end their connection.
    fn calm(&mut self) {
        {
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.tell(|| "the network becomes calm".to_owned());
            kernel.tape.end();
            kernel.willing = true;
            kernel.descriptors = usize::MAX;
            kernel.post.fails = None;
            kernel.post.full = false;
            kernel.backlogs.iter_mut().for_each(|backlog| backlog.fails = None);
        }
        if self.kernel.borrow().fault.is_some_and(|fault| fault.for_ever) {
            let before = self.kernel.borrow().tally.turns;
            self.wait(Duration::from_secs(3));
            let kernel = &mut *self.kernel.borrow_mut();
            let turns = kernel.tally.turns - before;
            assert!(turns < 2000, "a call fails for ever, and the loop makes {turns} turns in 3 s");
            kernel.fault = None;
        }
        for _ in 0..10 {
            self.receive_all();
            self.wait(Duration::from_millis(100));
        }
        self.receive_all();
        self.check_live();
        {
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.tell(|| "all peers close".to_owned());
            let timed = self.stopped.or(self.delayed).is_some() || self.config.idle_timeout.is_some();
            for wire in kernel.wires.iter_mut().filter(|wire| wire.vanished && !wire.shut && !timed) {
                wire.reset();
            }
        }
        for _ in 0..10_000 {
            {
                let kernel = &mut *self.kernel.borrow_mut();
                kernel.wires.iter_mut().filter(|wire| wire.is_present()).for_each(|wire| {
                    wire.receive(u64::MAX);
                    wire.end();
                });
                let nobody = kernel.wires.iter().all(|wire| wire.closed || wire.token.is_none());
                // One that was told to stop has an end of its own.
                let stays = self.stopped.or(self.delayed).is_none();
                if self.service.is_done() || nobody && stays && kernel.backlogs.iter().all(|it| it.waiting.is_empty()) {
                    return;
                }
            }
            if self.is_due() {
                self.turn(None);
                continue;
            }
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.now = whole_millis(kernel.began, self.wakes.expect("it sleeps for ever, and connections are left"));
        }
        panic!("connections are left, and the loop goes on");
    }

    /// All peers read until there is nothing more.
    fn receive_all(&mut self) {
        let mut progress = None;
        while progress != Some(self.kernel.borrow().progress) {
            progress = Some(self.kernel.borrow().progress);
            for wire in self.kernel.borrow_mut().wires.iter_mut().filter(|wire| wire.is_present()) {
                wire.receive(u64::MAX);
            }
            self.settle(1000);
        }
    }

    /// Who waits for something that is possible has got it.
    fn check_live(&self) {
        let kernel = self.kernel.borrow();
        if self.service.is_done() {
            return;
        }
        for wire in kernel.wires.iter().filter(|wire| wire.is_open() && !wire.vanished && !wire.shut) {
            let number = wire.number;
            assert_eq!(wire.unread(), 0, "connection {number} was not read for a second");
            if wire.kind == Kind::Http {
                assert!(
                    wire.asked() <= wire.answered(),
                    "connection {number} has asked, and got no answer for a second"
                );
            } else if !self.looks() && wire.admitted {
                assert_eq!(wire.owed(), 0, "connection {number} was not answered for a second");
            }
        }
        for (number, backlog) in kernel.backlogs.iter().enumerate().filter(|(_, backlog)| backlog.listening) {
            // Where accepting has only just failed, as it may if somebody has only just made room, it pauses.
            let pauses = backlog.refused.is_some_and(|(then, ..)| kernel.now - then < PAUSE);
            let waits = !backlog.waiting.is_empty() && self.bound(&kernel, backlog).is_some() && !pauses;
            assert!(!waits, "somebody waited at listener {number} for a second");
        }
        assert!(!kernel.post.open || kernel.post.waiting.is_empty(), "a datagram was not received for a second");
    }

    fn finish(&mut self) {
        self.service.admin = None;
        let kernel = self.kernel.borrow();
        assert_eq!(self.service.streams.counters().waiting_bytes, 0, "something is held for who is gone");
        let counters = self.service.summary().counters;
        assert_eq!(counters.opened, counters.closed_total() + counters.live(), "a connection is not accounted for");
        assert!(self.stopped.is_none() || self.service.is_done(), "it was told to stop, and does not");
        let listening = kernel.backlogs.iter().any(|backlog| backlog.listening && backlog.kind == Kind::Echo);
        assert_eq!(self.service.is_done(), !listening);
    }
}

fn access_has_proxy(config: &Config) -> bool {
    config.access.has_proxy()
}

/// A time, in whole milliseconds from `began` on: a poll sleeps no less than it is told.
fn whole_millis(began: Instant, time: Instant) -> Instant {
    let millis = time.saturating_duration_since(began).as_nanos().div_ceil(1_000_000);
    began + Duration::from_millis(millis as u64)
}

impl Kernel {
    /// Chooses one of the connections that `may`.
    fn pick(&mut self, may: impl Fn(&Wire) -> bool) -> Option<usize> {
        let those: Vec<usize> = (0..self.wires.len()).filter(|&index| may(&self.wires[index])).collect();
        let number = self.tape.below(POPULATION as u32) as usize;
        those.get(number % those.len().max(1)).copied()
    }

    fn amount(&mut self) -> u64 {
        let most = 1 << self.tape.below(21);
        u64::from(most - self.tape.below(most))
    }
}

/// The network does something. Returns what.
fn stir(kernel: &mut Kernel, what: Action) -> String {
    let nothing = || "nothing".to_owned();
    let is_echo = |wire: &Wire| wire.is_present() && wire.kind == Kind::Echo;
    match what {
        Action::Connect => connect(kernel).unwrap_or_else(nothing),
        Action::Send => {
            let (Some(index), count) = (kernel.pick(is_echo), kernel.amount()) else { return nothing() };
            let sent = kernel.wires[index].send(count);
            format!("connection {index} sends {sent} (of {count})")
        }
        Action::Receive => {
            let (Some(index), count) = (kernel.pick(Wire::is_present), kernel.amount()) else { return nothing() };
            let received = kernel.wires[index].receive(count);
            format!("connection {index} receives {received} (of {count})")
        }
        Action::End => {
            let Some(index) = kernel.pick(|wire| wire.is_present() && !wire.ended) else { return nothing() };
            kernel.wires[index].end();
            kernel.tally.half_closes += 1;
            format!("connection {index} closes its side")
        }
        Action::Reset => {
            let Some(index) = kernel.pick(Wire::is_present) else { return nothing() };
            kernel.wires[index].reset();
            kernel.tally.resets += 1;
            format!("connection {index} is reset")
        }
        Action::Vanish => {
            let Some(index) = kernel.pick(Wire::is_present) else { return nothing() };
            kernel.wires[index].vanished = true;
            kernel.tally.vanished += 1;
            format!("the peer of connection {index} vanishes")
        }
        Action::Descriptors => {
            kernel.descriptors = match kernel.tape.below(POPULATION as u32 + 1) {
                0 => usize::MAX,
                some => some as usize - 1,
            };
            format!("there are {} descriptors", kernel.descriptors)
        }
        Action::Urgent => {
            let Some(index) = kernel.pick(|wire| is_echo(wire) && wire.pieces.is_none() && !wire.ended && !wire.reset)
            else {
                return nothing();
            };
            let wire = &mut kernel.wires[index];
            let at = wire.sent;
            if wire.send(1) == 0 {
                return nothing();
            }
            wire.urgent = Some(at);
            kernel.tally.urgent += 1;
            format!("connection {index} sends an urgent byte, at {at}")
        }
        Action::Datagram => {
            if !kernel.post.open || kernel.post.received.len() > 2000 {
                return nothing();
            }
            let number = kernel.post.received.len() as u32;
            let ip = address(1 + kernel.tape.below(4));
            let to_many = kernel.tape.below(16) == 1;
            kernel.post.received.push(0);
            kernel.post.answered.push(0);
            kernel.post.waiting.push_back((number, kernel::envelope(number, ip, to_many)));
            kernel.post.armed = true;
            kernel.tally.datagrams += 1;
            format!("datagram {number} comes from {ip}")
        }
        Action::Ask => ask(kernel).unwrap_or_else(nothing),
        Action::Fail => {
            let fails = kernel.tape.below(2) == 0;
            let at = kernel.tape.below(4) as usize;
            let errno = [Errno::NOMEM, Errno::CONNABORTED, Errno::ACCESS, Errno::NFILE][kernel.tape.below(4) as usize];
            let fails = fails.then_some(errno);
            match kernel.backlogs.get_mut(at) {
                Some(backlog) => {
                    backlog.fails = fails;
                    format!("from here on, accepting at {at} fails with {fails:?}")
                }
                None if kernel.tape.below(2) == 0 => {
                    kernel.post.fails = fails;
                    kernel.post.armed |= kernel.post.open && fails.is_some();
                    format!("from here on, receiving datagrams fails with {fails:?}")
                }
                None => {
                    kernel.post.full = fails.is_some();
                    format!("there is no room for datagrams: {}", kernel.post.full)
                }
            }
        }
        Action::Nothing | Action::Stop | Action::Wait => nothing(),
    }
}

/// Somebody connects.
fn connect(kernel: &mut Kernel) -> Option<String> {
    let at = kernel.tape.below(kernel.backlogs.len() as u32) as usize;
    let kind = kernel.backlogs[at].kind;
    let present = kernel.wires.iter().filter(|wire| !wire.closed).count();
    let is_open = kernel.backlogs[at].listening && !kernel.backlogs[at].closed;
    if !is_open || present >= 2 * POPULATION {
        return None;
    }
    let ip = address(1 + kernel.tape.below(4));
    let number = kernel.wires.len() as u64;
    let in_pieces = kernel.tape.below(4) == 1;
    let local = kernel.tape.below(8) == 1;
    let origin = if local { Origin::Unix } else { Origin::Ip(SocketAddr::new(ip, 5000)) };
    let mut wire = Wire::new(number, kind, origin);
    wire.pieces = in_pieces.then(VecDeque::new);
    wire.receive_buffer = SIZES[kernel.tape.below(5) as usize];
    wire.send_buffer = SIZES[kernel.tape.below(5) as usize];
    let mut how = String::new();
    if kind == Kind::Http {
        wire.receive_buffer = 1 << 16;
    } else if kernel.rules.proxied {
        let client = address(1 + kernel.tape.below(4));
        let header = kernel.tape.below(8);
        (wire.head, wire.speaks_for) = match header {
            6 => (b"LOCAL 1 2\r\n".to_vec(), None),
            7 => (format!("PROXY TCP4 {client} 10.0.0.9 +40 50\r\n").into_bytes(), None),
            4 | 5 => {
                let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
                let IpAddr::V4(v4) = client else { unreachable!() };
                bytes.extend(v4.octets());
                bytes.extend([10, 0, 0, 9, 1, 1, 2, 2]);
                (bytes, Some(client))
            }
            _ => (format!("PROXY TCP4 {client} 10.0.0.9 40 50\r\n").into_bytes(), Some(client)),
        };
        wire.header_is_bad = header >= 6;
        how = format!(", speaking for {:?}", wire.speaks_for);
    }
    kernel.tally.connections += 1;
    let (receive, send) = (wire.receive_buffer, wire.send_buffer);
    kernel.wires.push(wire);
    kernel.backlogs[at].waiting.push_back(number as usize);
    kernel.backlogs[at].armed = true;
    let pieces = if in_pieces { ", a piece at a time" } else { "" };
    Some(format!(
        "somebody connects to {at} ({kind:?}): connection {number}, from {origin}, buffers of {receive} and {send}{how}{pieces}"
    ))
}

/// Somebody asks over HTTP, or goes on asking.
fn ask(kernel: &mut Kernel) -> Option<String> {
    let index = kernel.pick(|wire| wire.is_present() && wire.kind == Kind::Http)?;
    let (kind, part) = (kernel.tape.below(6) as usize, kernel.tape.below(4) == 1);
    let cut = kernel.tape.below(20);
    let wire = &mut kernel.wires[index];
    let rest = wire.head.len() as u64 - wire.sent;
    if rest > 0 {
        let sent = wire.send(rest);
        return Some(format!("connection {index} sends the rest of its request, {sent}"));
    }
    let request: &[u8] = [
        &b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"GET /state HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ][kind];
    if wire.ended || wire.reset {
        return None;
    }
    wire.head.extend_from_slice(request);
    wire.requests.push(wire.head.len() as u64);
    let length = if part { 1 + u64::from(cut) } else { request.len() as u64 };
    let sent = wire.send(length);
    kernel.tally.requests += 1;
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    Some(format!("connection {index} asks {}, {sent} bytes of it", line.escape_ascii()))
}
