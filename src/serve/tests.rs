//! The acceptor and the whole service against listeners that follow a script, under a clock of the test's own.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use mio::Token;
use rustix::io::Errno;

use super::admin::{self, Admin, Snapshot, StatusSource};
use super::service::Service;
use super::{AccessOptions, Config, Summary, tokens};
use crate::reactor::address::Endpoint;
use crate::reactor::scripted::{Scripted, ScriptedListener, ScriptedPort, Wire, read_closed, readable};
use crate::reactor::{Activity, Readiness, Settings, Source};

/// The token of the first listener of a reactor whose tokens begin there.
fn listener_token(first: usize) -> Token {
    Token(first + Settings::TOKENS / 2)
}

struct World {
    service: Service<Scripted, ScriptedPort>,
    door: ScriptedListener,
    now: Instant,
}

impl World {
    fn new(config: Config, max_connections: usize) -> Self {
        let (door, now) = (ScriptedListener::default(), Instant::now());
        let mut service = Service::new(&config, max_connections, None, now);
        service.streams.listen(|_| Ok(door.clone())).unwrap();
        World { service, door, now }
    }

    fn turn(&mut self, ready: &[Readiness]) {
        self.service.turn_with(self.now, ready.iter().copied());
    }

    fn knock(&mut self) {
        self.turn(&[readable(listener_token(0))]);
    }

    fn connections(&self) -> usize {
        self.service.streams.len()
    }

    fn accept_pauses(&self) -> u64 {
        self.service.summary().counters.accept_pauses
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

    fn wire(&self, key: usize) -> Wire {
        self.door.open()[key].clone()
    }

    /// The peer of the connection under `key` sends. Returns what has come back to it, and whether it is closed.
    fn send(&mut self, key: usize, bytes: &[u8]) -> (Vec<u8>, bool) {
        let wire = self.wire(key);
        wire.arrive(bytes);
        self.turn(&[readable(Token(key))]);
        (wire.written(), wire.dropped())
    }

    /// The peer of the connection under `key` closes.
    fn hang_up(&mut self, key: usize) {
        // Scripted peers are kept in the order of their keys as long as none has closed before.
        self.wire(key).end();
        self.turn(&[read_closed(Token(key))]);
    }
}

#[test]
fn backlog_beyond_budget_is_accepted_on_one_edge() {
    let mut world = World::new(Config::default(), 10_000);
    world.door.queue(1000);
    world.knock();
    assert!((1..1000).contains(&world.connections()), "in portions, so that connections get their turn");
    assert_eq!(world.service.sleep(world.now), Some(Duration::ZERO), "the rest is owed");
    assert_eq!(world.settle(), None);
    assert_eq!(world.connections(), 1000);
}

#[test]
fn connection_beyond_limit_waits_until_there_is_room() {
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
    assert_eq!(world.accept_pauses(), 1, "it is one episode");
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
    assert_eq!(world.accept_pauses(), 1);
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
        assert!(world.service.streams.is_starved(), "{error}");
        world.now += Duration::from_millis(10);
        world.turn(&[]);
        assert_eq!(world.connections(), 2, "{error}");
        assert_eq!(world.settle(), None, "{error}");
        assert!(!world.service.streams.is_starved(), "{error}");
    }
}

#[test]
fn turns_and_events_are_counted() {
    let mut world = World::new(Config::default(), 10);
    world.door.queue(1);
    world.knock();
    world.send(0, b"one");
    world.send(0, b"two");
    let counters = world.service.summary().counters;
    assert_eq!((counters.turns, counters.events, counters.received_bytes), (3, 2, 6));
}

#[test]
fn vanished_peer_and_signal_do_not_stop_accepting() {
    for error in [Errno::CONNABORTED, Errno::INTR] {
        let mut world = World::new(Config::default(), 10_000);
        world.door.0.borrow_mut().errors.extend([error, error]);
        world.door.queue(2);
        world.knock();
        assert_eq!((world.connections(), world.settle()), (2, None), "{error}");
        assert_eq!(world.accept_pauses(), 0);
    }
}

#[test]
fn new_episode_begins_after_backlog_was_empty() {
    let mut world = World::new(Config::default(), 1);
    for episode in 1..=3 {
        world.door.queue(2);
        world.knock();
        assert_eq!(world.accept_pauses(), episode);
        world.hang_up(0); // the second one gets its place,
        world.door.0.borrow_mut().open.retain(|wire| !wire.dropped());
        world.hang_up(0); // and then nobody waits
        world.door.0.borrow_mut().open.clear();
        assert_eq!((world.connections(), world.settle()), (0, None));
    }
}

#[test]
fn accept_limit_ends_listening_and_then_the_service() {
    let mut world = World::new(Config { accept_limit: Some(2), ..Config::default() }, 10);
    world.service.endpoints = vec![Endpoint::Tcp("127.0.0.1:7".parse().unwrap())];
    assert_eq!(world.service.snapshot(world.now).listening, world.service.endpoints);
    world.door.queue(3);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (2, 1));
    assert!(world.service.snapshot(world.now).listening.is_empty());
    world.hang_up(0);
    assert!(!world.service.is_done());
    world.hang_up(1);
    assert!(world.service.is_done());
}

#[test]
fn one_listener_does_not_take_every_place() {
    let doors = [ScriptedListener::default(), ScriptedListener::default()];
    let now = Instant::now();
    let mut service = Service::<Scripted, ScriptedPort>::new(&Config::default(), 1, None, now);
    for door in &doors {
        service.streams.listen(|_| Ok(door.clone())).unwrap();
        door.queue(100);
    }
    service.turn(now);
    for _ in 0..20 {
        for door in &doors {
            door.open().iter().for_each(Wire::end);
        }
        service.turn_with(now, [read_closed(Token(0))]);
    }
    let waiting = doors.map(|door| door.waiting());
    assert!(waiting.iter().all(|&left| (85..95).contains(&left)), "{waiting:?}");
}

#[test]
fn stop_sends_what_came_and_aborts_at_deadline() {
    let mut world = World::new(Config { drain_timeout: Duration::from_secs(1), ..Config::default() }, 10);
    world.door.queue(2);
    world.knock();
    let wires = world.door.open();
    wires[0].arrive(b"last words"); // arrived, and not yet read
    world.service.stop(world.now);
    assert_eq!(world.settle(), Some(Duration::from_secs(1)));
    assert_eq!(wires[0].written(), b"last words");
    assert!(wires.iter().all(Wire::shut), "the peers are told");
    assert!(!world.service.is_done(), "and given time to close");
    world.hang_up(0);
    world.now += Duration::from_secs(1);
    world.turn(&[]);
    assert!(world.service.is_done());
    let counters = world.service.summary().counters;
    assert_eq!((counters.closed_as("finished"), counters.closed_as("aborted")), (1, 1));
    assert!(!wires[1].reset(), "nothing that it was owed is missing");
}

#[test]
fn delayed_stop_serves_until_its_delay_passes() {
    let seconds = Duration::from_secs;
    let config = Config { stop_delay: seconds(3), drain_timeout: seconds(1), ..Config::default() };
    let mut world = World::new(config, 10);
    world.door.queue(1);
    world.knock();
    let end = world.service.stop(world.now);
    assert_eq!(end, world.now + seconds(4), "one deadline for all of it");
    let snapshot = world.service.snapshot(world.now);
    assert!(snapshot.stopping, "everybody is told at once");
    assert_eq!(world.settle(), Some(seconds(3)));
    world.now += seconds(2);
    world.door.queue(1);
    world.knock();
    assert_eq!((world.connections(), world.settle()), (2, Some(seconds(1))), "who still comes is served");
    assert_eq!(world.send(1, b"still here"), (b"still here".to_vec(), false));
    assert!(!world.door.0.borrow().closed);
    // Late, as a loop may be: the deadline is where it was.
    world.now += Duration::from_millis(1500);
    assert_eq!(world.settle(), Some(Duration::from_millis(500)));
    assert!(world.door.0.borrow().closed && world.door.open().iter().all(Wire::shut));
    world.now += Duration::from_millis(500);
    world.turn(&[]);
    assert!(world.service.is_done());
}

#[test]
fn delayed_stop_ends_early_when_nobody_is_left() {
    let config = Config { stop_delay: Duration::from_secs(60), accept_limit: Some(1), ..Config::default() };
    let mut world = World::new(config, 10);
    world.door.queue(1);
    world.knock();
    world.service.stop(world.now);
    assert!(!world.service.is_done());
    world.hang_up(0);
    assert!(world.service.is_done(), "nobody is waited for");
}

#[test]
fn a_stop_serves_the_whole_backlog() {
    let mut world = World::new(Config::default(), 3);
    world.door.queue(200);
    world.door.0.borrow().waiting.iter().for_each(|wire| {
        wire.0.borrow_mut().conclusive = false; // as it is behind an event that tells of the end
        wire.arrive(b"in time");
        wire.end();
    });
    let wires: Vec<_> = world.door.0.borrow().waiting.iter().cloned().collect();
    world.service.stop(world.now);
    assert!(world.door.0.borrow().closed, "nobody else gets into the backlog");
    world.settle();
    assert!(world.service.is_done());
    assert!(wires.iter().all(|wire| wire.written() == b"in time" && wire.dropped()));
}

#[test]
fn who_comes_after_a_stop_is_left_to_others() {
    // A listener that was handed over stays in the hands of others, and so does its backlog.
    let mut world = World::new(Config::default(), 10);
    world.door.queue(3);
    world.service.stop(world.now);
    world.door.queue(2);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (3, 2));
    assert!(!world.service.streams.is_listening());
}

#[test]
fn a_stop_serves_the_backlog_of_lingering_peers() {
    // None of them closes its side; there is room for three, or descriptors are short.
    for (max_connections, short) in [(3, false), (1000, true)] {
        let mut world = World::new(Config::default(), max_connections);
        world.door.queue(200);
        let wires: Vec<_> = world.door.0.borrow().waiting.iter().cloned().collect();
        wires.iter().for_each(|wire| wire.arrive(b"in time"));
        if short {
            world.door.0.borrow_mut().descriptors = Some(3);
        }
        world.service.stop(world.now);
        world.settle();
        let served = wires.iter().filter(|wire| wire.written() == b"in time" && wire.shut()).count();
        assert_eq!(served, 200);
        assert!(!world.service.is_done(), "the last ones are given their time");
    }
}

#[test]
fn bytes_unsent_at_stop_are_told_by_reset() {
    let mut world = World::new(Config::default(), 10);
    world.door.queue(1);
    world.knock();
    let wire = world.wire(0);
    wire.0.borrow_mut().room = 3;
    world.send(0, b"too much");
    world.service.stop(world.now);
    world.now += Duration::from_secs(5);
    world.turn(&[]);
    assert!(world.service.is_done() && wire.dropped() && wire.reset());
}

#[test]
fn terminator_and_limit_close_after_their_echo() {
    for (config, received, echoed) in [
        (Config { terminator: Some("bye".to_owned()), ..Config::default() }, "hi\nbye\nmore", "hi\nbye\n"),
        (Config { message_limit: Some(1), ..Config::default() }, "one\ntwo\n", "one\n"),
        (Config { message_limit: Some(1), ..Config::default() }, "one", "one"),
    ] {
        let mut world = World::new(config, 10);
        world.door.queue(1);
        world.knock();
        let wire = world.wire(0);
        world.send(0, received.as_bytes());
        assert_eq!(String::from_utf8_lossy(&wire.written()), echoed);
        assert!(wire.shut());
        world.hang_up(0);
        assert!(wire.dropped());
    }
}

#[test]
fn echoing_allocates_nothing_with_or_without_messages() {
    for config in [
        Config::default(),
        Config {
            terminator: Some("bye".to_owned()),
            message_limit: Some(u64::MAX),
            idle_timeout: Some(Duration::from_secs(60)),
            ..Config::default()
        },
    ] {
        let mut world = World::new(config, 100);
        world.door.queue(50);
        world.knock();
        let wires = world.door.open();
        let ready: Vec<_> = (0..50).map(|key| readable(Token(key))).collect();
        for turn in 0..100 {
            for wire in &wires {
                wire.arrive(b"hello\nworld");
                let script = &mut *wire.0.borrow_mut();
                script.written.clear();
                script.read.clear();
            }
            let now = world.now;
            let allocated = allocation_counter::measure(|| world.service.turn_with(now, ready.iter().copied()));
            // The first turn makes room in the loop's own lists, and in the scripted peers.
            assert!(turn == 0 || allocated.count_total == 0, "turn {turn}: {allocated:?}");
            assert!(wires.iter().all(|wire| wire.written() == b"hello\nworld"));
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
fn header_is_never_echoed_and_rest_always() {
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
    assert_eq!((summary.counters.closed_as("aborted"), summary.counters.live()), (2, 2));
}

#[test]
fn proxied_client_counts_until_its_connection_closes() {
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 7\r\n";
    let mut world = behind_a_proxy();
    assert_eq!(world.send(0, header), (vec![], false));
    assert_eq!(world.send(1, header), (vec![], true), "one is the most");
    world.hang_up(0);
    assert_eq!(world.send(2, header), (vec![], false), "there is room again");
    // One that never said for whom it speaks takes nobody's place with it; and that it has come and gone is no mistake.
    world.hang_up(3);
    assert_eq!(world.service.summary().refusals.to_string(), "1 per_source");
}

#[test]
fn header_is_awaited_for_five_seconds_at_most() {
    let mut world = behind_a_proxy();
    world.send(0, b"PROXY UNKNOWN\r\n");
    world.send(1, b"PROXY UN");
    let began = world.now;
    while world.now < began + Duration::from_millis(4999) {
        let sleep = world.settle().expect("a deadline is ahead");
        world.now = (world.now + sleep).min(began + Duration::from_millis(4999));
        world.turn(&[]);
        assert_eq!(world.connections(), 4);
    }
    world.send(2, b"PROXY UNKNOWN\r\n");
    world.now += Duration::from_millis(4); // a timer is honoured to within its slot, and never early
    world.turn(&[]);
    assert_eq!(world.connections(), 2, "those whose header has come are left");
    assert_eq!(world.settle(), None);
    assert_eq!(world.service.summary().refusals.to_string(), "2 header");
    assert_eq!(world.send(0, b"still here").0, b"still here");
}

#[test]
fn client_without_header_uses_no_accept_limit() {
    let access = AccessOptions {
        proxy_protocol: true,
        deny: vec!["203.0.113.0/24".parse().unwrap()],
        ..AccessOptions::default()
    };
    let mut world = World::new(Config { access, accept_limit: Some(1), ..Config::default() }, 100);
    world.door.queue(5);
    world.knock();
    world.settle();
    assert_eq!((world.connections(), world.door.waiting()), (1, 4), "the others wait for its header");
    assert_eq!(world.send(0, b"GET / HTTP/1.1\r\n"), (vec![], true));
    world.settle();
    assert_eq!(world.door.waiting(), 3, "it was none: the next one is asked");
    while world.door.waiting() == 3 {
        let sleep = world.settle().expect("it is waited for");
        world.now += sleep;
        world.turn(&[]);
    }
    assert_eq!(world.door.waiting(), 2, "nor is one that says nothing");
    world.hang_up(0);
    world.settle();
    assert_eq!(world.door.waiting(), 1, "nor one that goes");
    assert_eq!(world.send(0, b"PROXY TCP4 203.0.113.9 192.0.2.1 1 7\r\n").0, b"", "nor one that is denied");
    world.settle();
    assert_eq!((world.door.waiting(), world.service.streams.is_listening()), (0, true));
    assert_eq!(world.send(0, b"PROXY TCP4 198.51.100.7 192.0.2.1 1 7\r\nhello").0, b"hello");
    assert!(!world.service.streams.is_listening());
}

#[test]
fn refused_peer_is_no_connection() {
    let access = AccessOptions { accept_rate: NonZeroU32::new(3), ..AccessOptions::default() };
    let mut world = World::new(Config { access, accept_limit: Some(4), ..Config::default() }, 100);
    world.door.queue(10);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (3, 0));
    assert_eq!(world.service.summary().refusals.to_string(), "7 rate");
    assert_eq!(world.service.summary().refusals.total(), 7);
    world.now += Duration::from_secs(1);
    world.door.queue(1);
    world.knock();
    assert_eq!(world.connections(), 4, "the limit counts those who were let in");
    assert!(!world.service.streams.is_listening());
}

#[test]
fn slot_freed_after_accepting_is_taken_without_event() {
    let access = AccessOptions { proxy_protocol: true, ..AccessOptions::default() };
    let mut world = World::new(Config { access, ..Config::default() }, 1);
    world.door.queue(2);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (1, 1));
    for _ in 0..6 {
        // Nothing happens, except that time passes for as long as the loop sleeps.
        let sleep = world.settle().expect("the header is waited for");
        world.now += sleep;
        world.turn(&[]);
    }
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
            unprinted: None,
            max_connections: 1,
            up: Duration::ZERO,
            asleep: Duration::ZERO,
            stopping: false,
            listening: Vec::new(),
            listeners: Vec::new(),
            starved: false,
        }
    }

    fn slots(&self) -> usize {
        0
    }

    fn activity(&self, _: usize, _: Duration) -> Option<Activity> {
        None
    }
}

#[test]
fn silent_http_clients_give_way_to_asking_one() {
    let door = ScriptedListener::default();
    let mut admin = Admin::<Scripted>::new(admin::MAX_CONNECTIONS);
    admin.reactor.listen(|_| Ok(door.clone())).unwrap();
    let mut now = Instant::now();
    door.queue(admin::MAX_CONNECTIONS + 1);
    let asking = door.0.borrow().waiting.back().unwrap().clone();
    asking.arrive(b"GET /healthz HTTP/1.0\r\n\r\n");
    while door.waiting() > 1 {
        admin.turn(now);
    }
    // Nothing happens any more, except that time passes for as long as the loop sleeps.
    let began = now;
    while door.waiting() > 0 {
        now += admin.sleep(now).expect("it does not sleep for ever while somebody waits");
        admin.turn(now);
        admin.answer(now, &Nothing);
    }
    // The deadline of a request, which they had before, is looked at once a second.
    assert!(now - began <= Duration::from_secs(3), "a second of silence is enough: {:?}", now - began);
    for key in 0..admin::MAX_CONNECTIONS {
        admin.note(readable(Token(tokens::ADMIN + key)));
    }
    admin.turn(now);
    admin.answer(now, &Nothing);
    let answer = String::from_utf8(asking.written()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn client_without_header_does_not_use_up_once() {
    let access = AccessOptions { proxy_protocol: true, ..AccessOptions::default() };
    let mut world = World::new(Config { access, once: true, ..Config::default() }, 10);
    world.door.queue(2);
    world.knock();
    assert_eq!((world.connections(), world.door.waiting()), (1, 1));
    world.hang_up(0);
    world.settle();
    assert_eq!((world.connections(), world.door.waiting()), (1, 0), "the next one gets its chance");
    world.door.queue(1);
    world.knock();
    assert_eq!(world.door.waiting(), 1);
    assert_eq!(world.send(0, b"PROXY UNKNOWN\r\nword").0, b"word");
    assert!(!world.service.streams.is_listening());
    world.hang_up(0);
    assert!(world.service.is_done());
}
