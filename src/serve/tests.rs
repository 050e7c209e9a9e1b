//! The acceptor and the whole service against listeners that follow a script, under a clock of the test's own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::Token;
use rustix::io::Errno;

use super::acceptor::Accept;
use super::admin::{self, Admin, Snapshot, StatusSource};
use super::tokens;
use super::{AccessOptions, Config, Service, Summary};
use crate::reactor::address::Endpoint;
use crate::reactor::socket::Origin;
use crate::reactor::{Activity, Readiness, Stream};

/// A peer that sends what it is told to, and receives.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<u8>,
    end: bool,
    outgoing: Vec<u8>,
    shut: bool,
    closed: bool,
}

#[derive(Clone, Default)]
struct Socket(Rc<RefCell<Wire>>);

/// The server's end: dropping it is what close(2) is.
struct ServerEnd(Socket);

impl Drop for ServerEnd {
    fn drop(&mut self) {
        self.0.0.borrow_mut().closed = true;
    }
}

impl Read for ServerEnd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.0.borrow_mut();
        if wire.incoming.is_empty() && !wire.end {
            return Err(ErrorKind::WouldBlock.into());
        }
        wire.incoming.read(into)
    }
}

impl Write for ServerEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.borrow_mut().outgoing.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for ServerEnd {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.0.borrow_mut().shut = true;
        Ok(())
    }
    fn established(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// A listener: its backlog, and what accept says instead.
#[derive(Default)]
struct Backlog {
    waiting: VecDeque<Socket>,
    errors: VecDeque<Errno>,
    /// Say EMFILE whenever so many connections are open, whether or not anybody waits, as Linux does.
    descriptors: Option<usize>,
    open: Vec<Socket>,
    calls: usize,
}

#[derive(Clone, Default)]
struct Door(Rc<RefCell<Backlog>>);

impl Accept for Door {
    type Stream = ServerEnd;

    fn accept(&mut self, _: Token) -> io::Result<(ServerEnd, Origin)> {
        let mut backlog = self.0.borrow_mut();
        backlog.calls += 1;
        if let Some(error) = backlog.errors.pop_front() {
            return Err(error.into());
        }
        backlog.open.retain(|socket| !socket.0.borrow().closed);
        if backlog.descriptors.is_some_and(|limit| backlog.open.len() >= limit) {
            return Err(Errno::MFILE.into());
        }
        let socket = backlog.waiting.pop_front().ok_or(ErrorKind::WouldBlock)?;
        backlog.open.push(socket.clone());
        Ok((ServerEnd(socket), Origin::Unix))
    }
}

impl Door {
    fn queue(&self, count: usize) {
        self.0.borrow_mut().waiting.extend((0..count).map(|_| Socket::default()));
    }

    fn waiting(&self) -> usize {
        self.0.borrow().waiting.len()
    }

    fn calls(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().calls)
    }
}

struct World {
    service: Service<Door>,
    door: Door,
    now: Instant,
}

impl World {
    fn new(config: Config, max_connections: usize) -> Self {
        let door = Door::default();
        let service = Service::new(&config, vec![(tokens::source(0), door.clone())], max_connections, None);
        World { service, door, now: Instant::now() }
    }

    fn turn(&mut self, ready: &[Readiness]) {
        self.service.turn(self.now, ready.iter().copied());
    }

    fn knock(&mut self) {
        self.turn(&[readable(tokens::source(0))]);
    }

    fn connections(&self) -> usize {
        self.service.reactor.len()
    }

    /// Turns until the service would sleep, and returns how long.
    fn settle(&mut self) -> Option<Duration> {
        for _ in 0..1000 {
            match self.service.sleep(self.now) {
                Some(Duration::ZERO) => self.turn(&[]),
                sleep => return sleep,
            }
        }
        panic!("the loop spins");
    }

    /// The peer of the connection under `key` sends. Returns what has come back to it, and whether it is closed.
    fn send(&mut self, key: usize, bytes: &[u8]) -> (Vec<u8>, bool) {
        let socket = self.door.0.borrow().open[key].clone();
        socket.0.borrow_mut().incoming.extend(bytes);
        self.turn(&[readable(Token(key))]);
        let wire = socket.0.borrow();
        (wire.outgoing.clone(), wire.closed)
    }

    /// The peer of the connection under `key` closes.
    fn hang_up(&mut self, key: usize) {
        // Scripted peers are kept in the order of their keys as long as none has closed before.
        let socket = self.door.0.borrow().open[key].clone();
        socket.0.borrow_mut().end = true;
        self.turn(&[Readiness { read_closed: true, ..readable(Token(key)) }]);
    }
}

fn readable(token: Token) -> Readiness {
    Readiness { token, readable: true, writable: false, read_closed: false }
}

#[test]
fn a_backlog_longer_than_the_budget_is_accepted_on_one_edge() {
    let mut world = World::new(Config::default(), 10_000);
    world.door.queue(1000);
    world.knock();
    assert!((1..1000).contains(&world.connections()), "in portions, so that connections get their turn");
    assert_eq!(world.service.sleep(world.now), Some(Duration::ZERO), "the rest is owed");
    assert_eq!(world.settle(), None);
    assert_eq!(world.connections(), 1000);
}

#[test]
fn who_comes_beyond_the_limit_waits_and_is_served_when_there_is_room() {
    let mut world = World::new(Config::default(), 10);
    world.door.queue(15);
    world.knock();
    assert_eq!(world.settle(), None, "no timer: only a connection that closes makes room");
    assert_eq!((world.connections(), world.door.waiting()), (10, 5));
    world.door.calls();
    world.turn(&[]);
    assert_eq!(world.door.calls(), 0);
    world.hang_up(3);
    assert_eq!((world.connections(), world.door.waiting()), (10, 4), "no edge was needed");
    assert_eq!(world.service.summary().accept_pauses, 1, "it is one episode");
}

#[test]
fn without_descriptors_accepting_pauses_and_does_not_spin() {
    let mut world = World::new(Config::default(), 10_000);
    world.door.0.borrow_mut().descriptors = Some(10);
    world.door.queue(10); // exactly: the backlog is empty then, but Linux will not say so
    world.knock();
    let mut retries = Vec::new();
    for _ in 0..8 {
        let sleep = world.settle().expect("a retry is due");
        retries.push(sleep.as_millis());
        world.now += sleep;
        world.door.calls();
        world.turn(&[]);
        assert_eq!(world.door.calls(), 1);
    }
    assert_eq!(retries, [10, 20, 40, 80, 100, 100, 100, 100]);
    assert_eq!(world.service.summary().accept_pauses, 1);
    world.door.queue(1);
    world.door.calls();
    world.knock();
    assert_eq!((world.door.calls(), world.door.waiting()), (0, 1), "an edge does not end the pause");
    world.hang_up(0);
    assert_eq!(world.door.waiting(), 0, "a closed connection does");
}

#[test]
fn every_want_of_the_kernel_pauses_and_passes() {
    for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC, Errno::PERM] {
        let mut world = World::new(Config::default(), 10_000);
        world.door.0.borrow_mut().errors.push_back(error);
        world.door.queue(2);
        world.knock();
        assert_eq!((world.connections(), world.settle()), (0, Some(Duration::from_millis(10))), "{error}");
        world.now += Duration::from_millis(10);
        world.turn(&[]);
        assert_eq!(world.connections(), 2, "{error}");
        assert_eq!(world.settle(), None, "{error}");
    }
}

#[test]
fn a_peer_that_is_gone_already_and_a_signal_do_not_stop_accepting() {
    for error in [Errno::CONNABORTED, Errno::INTR] {
        let mut world = World::new(Config::default(), 10_000);
        world.door.0.borrow_mut().errors.extend([error, error]);
        world.door.queue(2);
        world.knock();
        assert_eq!((world.connections(), world.settle()), (2, None), "{error}");
        assert_eq!(world.service.summary().accept_pauses, 0);
    }
}

#[test]
fn a_new_episode_begins_after_the_backlog_was_found_empty() {
    let mut world = World::new(Config::default(), 1);
    for episode in 1..=3 {
        world.door.queue(2);
        world.knock();
        assert_eq!(world.service.summary().accept_pauses, episode);
        world.hang_up(0); // the second one gets its place,
        world.door.0.borrow_mut().open.retain(|socket| !socket.0.borrow().closed);
        world.hang_up(0); // and then nobody waits
        world.door.0.borrow_mut().open.clear();
        assert_eq!((world.connections(), world.settle()), (0, None));
    }
}

#[test]
fn the_accept_limit_ends_listening_and_then_the_service() {
    let mut world = World::new(Config { accept_limit: Some(2), ..Config::default() }, 10);
    world.door.queue(3);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (2, 1));
    world.hang_up(0);
    assert!(!world.service.is_done());
    world.hang_up(1);
    assert!(world.service.is_done());
}

#[test]
fn one_listener_does_not_take_every_place() {
    let doors = [Door::default(), Door::default()];
    let mut service = Service::new(&Config::default(), (0..).map(tokens::source).zip(doors.clone()).collect(), 1, None);
    let now = Instant::now();
    doors[0].queue(100);
    doors[1].queue(100);
    service.turn(now, [readable(tokens::source(0)), readable(tokens::source(1))]);
    for _ in 0..20 {
        for door in &doors {
            door.0.borrow().open.iter().for_each(|socket| socket.0.borrow_mut().end = true);
        }
        service.turn(now, [Readiness { read_closed: true, ..readable(Token(0)) }]);
    }
    let waiting = doors.map(|door| door.waiting());
    assert!(waiting.iter().all(|&left| (85..95).contains(&left)), "{waiting:?}");
}

#[test]
fn a_stop_sends_what_was_received_and_cuts_at_the_deadline() {
    let mut world = World::new(Config { drain_timeout: Duration::from_secs(1), ..Config::default() }, 10);
    world.door.queue(2);
    world.knock();
    let sockets = world.door.0.borrow().open.clone();
    sockets[0].0.borrow_mut().incoming.extend(b"last words"); // arrived, and not yet read
    world.service.stop(world.now);
    assert_eq!(world.settle(), Some(Duration::from_secs(1)));
    assert_eq!(sockets[0].0.borrow().outgoing, b"last words");
    assert!(sockets.iter().all(|socket| socket.0.borrow().shut), "the peers are told");
    assert!(!world.service.is_done(), "and given time to close");
    world.hang_up(0);
    world.now += Duration::from_secs(1);
    world.turn(&[]);
    assert!(world.service.is_done());
    let counters = world.service.summary().counters;
    assert_eq!((counters.finished, counters.aborted), (1, 1));
}

#[test]
fn a_terminator_closes_after_its_echo_and_a_limit_after_its_messages() {
    for (config, received, echoed) in [
        (Config { terminator: Some(b"bye".to_vec()), ..Config::default() }, "hi\nbye\nmore", "hi\nbye\n"),
        (Config { message_limit: Some(1), ..Config::default() }, "one\ntwo\n", "one\n"),
        (Config { message_limit: Some(1), ..Config::default() }, "one", "one"),
    ] {
        let mut world = World::new(config, 10);
        world.door.queue(1);
        world.knock();
        let socket = world.door.0.borrow().open[0].clone();
        socket.0.borrow_mut().incoming.extend(received.as_bytes());
        world.turn(&[readable(Token(0))]);
        assert_eq!(String::from_utf8_lossy(&socket.0.borrow().outgoing), echoed);
        assert!(socket.0.borrow().shut);
        world.hang_up(0);
        assert!(socket.0.borrow().closed);
    }
}

#[test]
fn echoing_allocates_nothing_with_or_without_messages_to_look_for() {
    for config in [
        Config::default(),
        Config {
            terminator: Some(b"bye".to_vec()),
            message_limit: Some(u64::MAX),
            idle_timeout: Some(Duration::from_secs(60)),
            ..Config::default()
        },
    ] {
        let mut world = World::new(config, 100);
        world.door.queue(50);
        world.knock();
        let sockets = world.door.0.borrow().open.clone();
        let ready: Vec<_> = (0..50).map(|key| readable(Token(key))).collect();
        for turn in 0..100 {
            for socket in &sockets {
                let mut wire = socket.0.borrow_mut();
                wire.incoming.extend(b"hello\nworld");
                wire.outgoing.clear();
            }
            let now = world.now;
            let allocated = allocation_counter::measure(|| world.service.turn(now, ready.iter().copied()));
            // The first turn makes room in the loop's own lists, and in the scripted peers.
            assert!(turn == 0 || allocated.count_total == 0, "turn {turn}: {allocated:?}");
            assert!(sockets.iter().all(|socket| socket.0.borrow().outgoing == b"hello\nworld"));
            world.now += Duration::from_millis(10);
        }
    }
}

fn behind_a_proxy() -> World {
    let access = AccessOptions {
        proxy_protocol: true,
        deny: vec!["203.0.113.0/24".parse().unwrap()],
        max_per_source: Some(1),
        ..AccessOptions::default()
    };
    let mut world = World::new(Config { access, ..Config::default() }, 100);
    world.door.queue(4);
    world.knock();
    world
}

#[test]
fn nothing_of_a_header_is_echoed_however_it_comes_and_everything_after_it_is() {
    let mut world = behind_a_proxy();
    assert_eq!(world.send(0, b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 7\r\nhello"), (b"hello".to_vec(), false));
    for byte in b"PROXY TCP4 198.51.100.8 192.0.2.1 4711 7\r" {
        assert_eq!(world.send(1, &[*byte]), (vec![], false));
    }
    assert_eq!(world.send(1, b"\nhi"), (b"hi".to_vec(), false));
    assert_eq!(world.send(1, b", PROXY again"), (b"hi, PROXY again".to_vec(), false), "there is one header");
    assert_eq!(world.send(2, b"GET / HTTP/1.1\r\n"), (vec![], true));
    assert_eq!(world.send(3, b"PROXY TCP4 203.0.113.9 192.0.2.1 1 7\r\nhello"), (vec![], true), "denied");
    let summary = world.service.summary();
    assert_eq!(summary.refusals.to_string(), "1 denied, 1 header");
    assert_eq!((summary.counters.refused, summary.counters.live()), (2, 2));
}

#[test]
fn whom_a_proxy_speaks_for_counts_until_the_connection_is_gone() {
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 7\r\n";
    let mut world = behind_a_proxy();
    assert_eq!(world.send(0, header), (vec![], false));
    assert_eq!(world.send(1, header), (vec![], true), "one is the most");
    world.hang_up(0);
    assert_eq!(world.send(2, header), (vec![], false), "there is room again");
    world.hang_up(3); // one that never said for whom it speaks takes nobody's place with it
    assert_eq!(world.service.summary().refusals.to_string(), "1 per_source, 1 header");
}

#[test]
fn a_header_is_waited_for_five_seconds_and_no_longer() {
    let mut world = behind_a_proxy();
    world.send(0, b"PROXY UNKNOWN\r\n");
    world.send(1, b"PROXY UN");
    assert_eq!(world.settle(), Some(Duration::from_secs(5)));
    world.now += Duration::from_millis(4999);
    world.turn(&[]);
    assert_eq!(world.connections(), 4);
    world.send(2, b"PROXY UNKNOWN\r\n");
    world.now += Duration::from_millis(1);
    world.turn(&[]);
    assert_eq!(world.connections(), 2, "those whose header has come are left");
    assert_eq!(world.settle(), None);
    assert_eq!(world.service.summary().refusals.to_string(), "2 header");
    assert_eq!(world.send(0, b"still here").0, b"still here");
}

#[test]
fn who_sends_no_header_uses_up_no_accept_limit() {
    let access = AccessOptions {
        proxy_protocol: true,
        deny: vec!["203.0.113.0/24".parse().unwrap()],
        ..AccessOptions::default()
    };
    let mut world = World::new(Config { access, accept_limit: Some(1), ..Config::default() }, 100);
    world.door.queue(5);
    world.knock();
    assert_eq!(
        (world.connections(), world.settle()),
        (1, Some(Duration::from_secs(5))),
        "the others wait for its header"
    );
    assert_eq!(world.send(0, b"GET / HTTP/1.1\r\n"), (vec![], true));
    assert_eq!(world.door.waiting(), 3, "it was none: the next one is asked");
    world.now += Duration::from_secs(5);
    world.turn(&[]);
    world.settle();
    assert_eq!(world.door.waiting(), 2, "nor is one that says nothing");
    world.hang_up(0);
    assert_eq!(world.door.waiting(), 1, "nor one that goes");
    assert_eq!(world.send(0, b"PROXY TCP4 203.0.113.9 192.0.2.1 1 7\r\n").0, b"", "nor one that is denied");
    assert_eq!((world.door.waiting(), world.service.acceptor.is_closed()), (0, false));
    assert_eq!(world.send(0, b"PROXY TCP4 198.51.100.7 192.0.2.1 1 7\r\nhello").0, b"hello");
    assert!(world.service.acceptor.is_closed());
}

#[test]
fn who_is_turned_away_at_the_door_is_no_connection() {
    let access = AccessOptions { accept_rate: NonZeroU32::new(3), ..AccessOptions::default() };
    let mut world = World::new(Config { access, accept_limit: Some(4), ..Config::default() }, 100);
    world.door.queue(10);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (3, 0));
    assert_eq!(world.service.summary().refusals.to_string(), "7 rate");
    world.now += Duration::from_secs(1);
    world.door.queue(1);
    world.knock();
    assert_eq!(world.connections(), 4, "the limit counts those who were let in");
    assert!(world.service.acceptor.is_closed());
}

#[test]
fn a_place_freed_after_accepting_is_taken_without_an_event() {
    let access = AccessOptions { proxy_protocol: true, ..AccessOptions::default() };
    let mut world = World::new(Config { access, ..Config::default() }, 1);
    world.door.queue(2);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (1, 1));
    let patience = world.settle().expect("the header is waited for until then");
    world.now += patience;
    world.settle();
    assert_eq!((world.connections(), world.door.waiting()), (1, 0), "who waited is in now");
}

/// A server that has nothing to show.
struct Nothing;

impl StatusSource for Nothing {
    fn snapshot(&self, _: Instant) -> Snapshot {
        Snapshot {
            summary: Summary::default(),
            messages: None,
            max_connections: 1,
            up: Duration::ZERO,
            asleep: Duration::ZERO,
            stopping: false,
        }
    }

    fn places(&self) -> usize {
        0
    }

    fn activity(&self, _: usize, _: Duration) -> Option<Activity> {
        None
    }
}

#[test]
fn silent_http_clients_give_way_to_one_that_asks() {
    let door = Door::default();
    let mut admin = Admin::new(vec![(tokens::source(0), door.clone())], Vec::new(), 64);
    let mut now = Instant::now();
    door.queue(admin::MAX_CONNECTIONS + 1);
    door.0.borrow().waiting.back().unwrap().0.borrow_mut().incoming.extend(b"GET /healthz HTTP/1.0\r\n\r\n");
    admin.mark(&readable(tokens::source(0)));
    admin.turn(now, &Nothing);
    let asking = door.0.borrow().waiting.front().expect("there is no place for it").clone();
    // Nothing happens any more, except that time passes for as long as the loop sleeps.
    while !door.0.borrow().waiting.is_empty() {
        now += admin.sleep(now).expect("it does not sleep for ever while somebody waits");
        admin.turn(now, &Nothing);
    }
    for key in 0..admin::MAX_CONNECTIONS {
        admin.mark(&readable(Token(tokens::ADMIN + key)));
    }
    admin.turn(now, &Nothing);
    let answer = String::from_utf8(asking.0.borrow().outgoing.clone()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a_name_is_served_where_its_addresses_exist() {
    let asked = "localhost:7777".parse().unwrap();
    let both = ["[::1]:7777", "127.0.0.1:7777"].map(|text| Endpoint::Tcp(text.parse().unwrap()));
    let without = |missing: usize, errno: Errno| {
        let mut bound = Vec::new();
        let outcome = super::bind_all(&asked, &both[..=missing.max(1)], |endpoint| {
            if both[..missing].contains(endpoint) {
                return Err(errno.into());
            }
            bound.push(endpoint.clone());
            Ok(())
        });
        (outcome.map_err(|error| format!("{error:#}")), bound)
    };
    assert_eq!(without(1, Errno::ADDRNOTAVAIL), (Ok(()), vec![both[1].clone()]));
    assert_eq!(without(1, Errno::AFNOSUPPORT), (Ok(()), vec![both[1].clone()]));
    let (outcome, _) = without(1, Errno::ADDRINUSE);
    assert!(outcome.unwrap_err().starts_with("cannot listen on localhost:7777 ([::1]:7777): "));
}
