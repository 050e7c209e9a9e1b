//! The client against a scripted socket, input and screen: law 1 after every turn, and an outcome after every run.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use proptest::prelude::*;

use super::*;
use crate::connect::screen::Form;
use crate::reactor::scripted::{Answer, Scripted, Wire, read_closed, readable, writable};

pub(super) struct World {
    pub config: &'static Config,
    pub wire: Wire,
    pub client: Client<'static, Scripted>,
    pub items: Option<SyncSender<Item>>,
    pub input: Input,
    pub screen: Screen,
    pub buffers: Receiver<Vec<u8>>,
    pub written: SyncSender<io::Result<Vec<u8>>>,
    pub printed: Vec<u8>,
    /// What of the written bytes has been echoed.
    pub echoed: usize,
    pub now: Instant,
}

impl World {
    pub fn new(change: impl FnOnce(&mut Config)) -> World {
        let mut config = Config::new("192.0.2.1:7".parse().unwrap());
        change(&mut config);
        let config: &'static Config = Box::leak(Box::new(config));
        let wire = Wire::default();
        let (items, read) = sync_channel(1000);
        let (to_writer, buffers) = sync_channel(1);
        let (written, from_writer) = sync_channel(1);
        let client = Client::start(config, false, |_| Ok(wire.socket())).unwrap();
        World {
            config,
            wire,
            now: client.now,
            client,
            items: Some(items),
            input: Input::new(read, false),
            screen: Screen::new(config, Form::Bytes, to_writer, from_writer),
            buffers,
            written,
            printed: Vec::new(),
            echoed: 0,
        }
    }

    fn say(&self, line: &[u8]) {
        let item = Item::Piece { bytes: line.to_vec(), line_ends: line.ends_with(b"\n") };
        self.items.as_ref().unwrap().send(item).unwrap();
    }

    /// The peer echoes up to so many bytes.
    pub fn echo(&mut self, count: usize) {
        let written = self.wire.written();
        let end = self.echoed.saturating_add(count).min(written.len());
        self.wire.arrive(&written[self.echoed..end]);
        self.echoed = end;
    }

    /// Whoever reads the output takes what there is.
    pub fn read_output(&mut self) -> bool {
        let Ok(buffer) = self.buffers.try_recv() else { return false };
        self.printed.extend_from_slice(&buffer);
        self.written.send(Ok(buffer)).unwrap();
        true
    }

    pub fn turn(&mut self, ready: &[Readiness]) {
        self.input.refill();
        self.screen.turn().unwrap();
        self.client.turn(self.now, ready, &mut self.input, &mut self.screen);
        self.screen.turn().unwrap();
    }

    /// Makes turns as the loop does, and checks law 1: when it would sleep, a turn would change nothing.
    fn run(&mut self, ready: &[Readiness]) {
        self.turn(ready);
        let mut turns = 0;
        while self.client.sleep(&self.input, &self.screen) == Some(Duration::ZERO) {
            if self.client.outcome(&self.input, &self.screen).is_some() {
                return;
            }
            self.turn(&[]);
            turns += 1;
            assert!(turns < 10_000, "it spins");
        }
        let state = self.state();
        self.turn(&[]);
        assert_eq!(self.state(), state, "it slept while there was work");
    }

    pub fn state(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let client = &self.client;
        (
            self.wire.written().len(),
            client.echoed.missing(),
            client.phase,
            client.newline_owed,
            client.reactor.is_empty(),
        )
    }

    /// Lets time pass and events come until it is over. Panics if that is never.
    fn outcome(&mut self) -> Result<(), String> {
        for _ in 0..10_000 {
            if let Some(outcome) = self.client.outcome(&self.input, &self.screen) {
                while self.read_output() {
                    self.screen.turn().unwrap();
                }
                return outcome.map_err(|error| error.to_string());
            }
            self.read_output();
            let token = self.client.token;
            self.run(&[readable(token), writable(token)]);
            if let Some(sleep) = self.client.sleep(&self.input, &self.screen) {
                self.now += sleep;
            }
        }
        panic!("it never ends: {:?}", self.state());
    }

    /// The peer echoes everything, and closes its side when ours is closed.
    fn outcome_with_echo(&mut self) -> Result<(), String> {
        self.wire.0.borrow_mut().room = usize::MAX;
        for _ in 0..10_000 {
            self.echo(usize::MAX);
            if self.wire.shut() && self.echoed == self.wire.written().len() {
                self.wire.end();
                break;
            }
            self.read_output();
            let token = self.client.token;
            self.run(&[readable(token), writable(token)]);
        }
        self.outcome()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Say(Vec<u8>),
    Echo(usize),
    Room(usize),
    ReadOutput,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        ("[a-c]{0,8}", any::<bool>()).prop_map(|(line, whole)| {
            Step::Say(if whole || line.is_empty() { line + "\n" } else { line }.into_bytes())
        }),
        (1usize..200_000).prop_map(|length| Step::Say([vec![b'x'; length], b"\n".to_vec()].concat())),
        (1usize..300_000).prop_map(Step::Echo),
        (0usize..100_000).prop_map(Step::Room),
        Just(Step::ReadOutput),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn everything_comes_back_in_any_order_of_events(no_newline in any::<bool>(), steps in prop::collection::vec(step(), 0..30)) {
        let mut world = World::new(|config| config.no_newline = no_newline);
        let mut said = Vec::new();
        world.run(&[]);
        for step in steps {
            match step {
                Step::Say(line) => {
                    said.extend_from_slice(&line);
                    world.say(&line);
                }
                Step::Echo(count) => world.echo(count),
                Step::Room(room) => world.wire.0.borrow_mut().room = room,
                Step::ReadOutput => _ = world.read_output(),
            }
            let token = world.client.token;
            world.run(&[readable(token), writable(token)]);
        }
        world.items = None;
        prop_assert_eq!(world.outcome_with_echo(), Ok(()));
        prop_assert!(world.printed == said, "{} of {} bytes printed", world.printed.len(), said.len());
    }

    #[test]
    fn early_end_is_an_error_whenever_it_comes(
        lines in 1usize..5, echoed in 0usize..20, before in any::<bool>(), reset in any::<bool>(), no_newline in any::<bool>(),
    ) {
        let mut world = World::new(|config| config.no_newline = no_newline);
        let end = |world: &mut World| {
            world.echo(echoed.min(lines * 4 - 1));
            if reset {
                world.wire.writes(&[Answer::Reset; 8]);
            }
            world.wire.end();
            let token = world.client.token;
            world.run(&[read_closed(token)]);
        };
        if before {
            end(&mut world);
        }
        for _ in 0..lines {
            world.say(b"line\n");
        }
        world.items = None;
        world.run(&[]);
        if !before {
            end(&mut world);
        }
        let error = world.outcome().unwrap_err();
        prop_assert!(error.contains(" not echoed: 192.0.2.1:7"), "{error}");
    }
}

#[test]
fn output_that_nobody_reads_holds_the_peer_up() {
    let mut world = World::new(|_| ());
    let token = world.client.token;
    let mut arrived = 0;
    for _ in 0..100 {
        world.wire.arrive(&[7; 64 * 1024]);
        arrived += 64 * 1024;
        world.run(&[readable(token)]);
    }
    let unread = world.wire.0.borrow().incoming.len();
    assert!(arrived - unread < 2 << 20, "{} bytes are in memory", arrived - unread);
    // When somebody reads, everything comes, though no event tells.
    while world.read_output() {
        world.run(&[]);
    }
    assert_eq!(world.printed.len(), arrived);
}

#[test]
fn end_reported_while_output_waits_is_seen() {
    let mut world = World::new(|_| ());
    let token = world.client.token;
    world.wire.arrive(&[7; 5 << 20]);
    world.wire.end();
    world.run(&[read_closed(token)]); // the only event there will be
    assert!(!world.client.reactor.is_empty(), "the output is full before the end is read");
    while world.read_output() {
        world.run(&[]);
    }
    assert_eq!((world.printed.len(), world.client.reactor.is_empty()), (5 << 20, true));
}

#[test]
fn what_came_before_a_failed_write_is_printed() {
    let mut world = World::new(|_| ());
    world.wire.arrive(b"denied\n");
    world.wire.writes(&[Answer::Reset]);
    world.say(b"hello\n");
    assert!(world.outcome().is_err());
    assert_eq!(world.printed, b"denied\n");
}

#[test]
fn input_behind_an_echoed_terminator_is_not_missing() {
    let mut world = World::new(|config| config.terminator = Some("bye".to_owned()));
    world.wire.0.borrow_mut().room = usize::MAX;
    world.say(b"bye\n");
    world.say(b"never sent\n");
    let token = world.client.token;
    world.run(&[readable(token), writable(token)]);
    world.echo(usize::MAX);
    world.wire.end(); // the echo and the end are there before the client looks again
    world.run(&[read_closed(token)]);
    assert_eq!(world.outcome(), Ok(()));
    assert_eq!(world.wire.written(), b"bye\n");
}

#[test]
fn silent_input_is_not_waited_for_long() {
    let mut world = World::new(|_| ());
    world.wire.end();
    let began = world.now;
    assert_eq!(world.outcome(), Ok(()));
    assert_eq!(world.now - began, INPUT_TIMEOUT);
}

#[test]
fn a_timeout_means_nothing_after_the_end() {
    let mut world = World::new(|config| config.timeout = Some(INPUT_TIMEOUT / 2));
    world.say(b"hello\n");
    world.run(&[]);
    world.echo(6);
    world.wire.end();
    assert_eq!(world.outcome(), Ok(()));
}

#[test]
fn reply_is_late_only_while_one_is_due() {
    let mut world = World::new(|config| config.timeout = Some(Duration::from_secs(5)));
    world.run(&[]);
    world.now += Duration::from_secs(1000);
    world.run(&[]);
    assert!(world.client.outcome(&world.input, &world.screen).is_none(), "nothing was asked for");
    let asked = world.now;
    world.say(b"hello\n");
    let error = world.outcome().unwrap_err();
    assert_eq!(error, "no reply from 192.0.2.1:7 within 5s: 6 bytes not echoed");
    assert_eq!(world.now - asked, world.config.timeout.unwrap());
}

#[test]
fn expected_text_or_its_absence_ends_the_client() {
    let mut world = World::new(|config| config.expect = Some("lo w".to_owned()));
    world.wire.arrive(b"hello");
    world.run(&[readable(world.client.token)]);
    assert!(world.client.outcome(&world.input, &world.screen).is_none());
    world.wire.arrive(b" world");
    assert_eq!(world.outcome(), Ok(()));

    let mut world = World::new(|config| config.expect = Some("bye".to_owned()));
    world.wire.arrive(b"hello");
    world.wire.end();
    assert_eq!(world.outcome(), Err("\"bye\" did not come back from 192.0.2.1:7".to_owned()));
}

#[test]
fn other_text_does_not_put_expected_one_off() {
    let mut world = World::new(|config| {
        (config.expect, config.timeout) = (Some("bye".to_owned()), Some(Duration::from_secs(5)));
    });
    let began = world.now;
    let outcome = loop {
        world.wire.arrive(b"still there\n");
        world.run(&[readable(world.client.token)]);
        world.read_output();
        if let Some(outcome) = world.client.outcome(&world.input, &world.screen) {
            break outcome;
        }
        world.now += Duration::from_secs(1);
        assert!(world.now - began < Duration::from_secs(60), "it goes on");
    };
    assert_eq!(outcome.unwrap_err().to_string(), "\"bye\" did not come back from 192.0.2.1:7 within 5s");
    assert_eq!(world.now - began, Duration::from_secs(5));
}
