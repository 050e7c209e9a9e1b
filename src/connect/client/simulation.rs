//! The client in simulated conversations: its peer, its input and the reader of its output do as a tape says. Events are
//! edges, as a poll tells them: when something has changed, and not again.
//!
//! Whatever happens, what is printed is what has come; it ends well if all that was said has come back, or what was
//! expected has come, and otherwise only for a reason; memory is bounded; and when it would sleep, a turn would change nothing.
//! In the end the peer and the reader are willing, and it must come to an end.

use memchr::memmem;

use super::tests::World;
use super::*;
use crate::connect::input::without_newline;
use crate::reactor::scripted::{Answer, nothing};
use crate::simulation::tape::{Failure, Steps, Tape, attempt};
use crate::simulation::{Simulation, endless_seeds, seeds};

const TERMINATOR: &str = "bye";
const EXPECTED: &str = "lo w";

/// What the input says; the long one is cut where it is read.
const WORDS: [&[u8]; 6] = [b"a", b"", b"hello world", b"bye", b"lo", b"goodbye\r"];

/// What the peer says of its own accord.
const GREETINGS: [&[u8]; 4] = [b"220 ready", b"lo", b" w", b"a"];

/// Steps of a conversation at most.
const STORM: usize = 60;

/// What may be in memory of what the peer has sent: what is being printed, what waits for that, and one read of a turn.
const MEMORY: usize = 2 << 20;

const ACTIONS: [(Action, u32); 15] = [
    (Action::Nothing, 1),
    (Action::Say, 30),
    (Action::EndInput, 3),
    (Action::FailInput, 1),
    (Action::Echo, 30),
    (Action::Greet, 4),
    (Action::Flood, 3),
    (Action::Room, 8),
    (Action::ReadOutput, 15),
    (Action::Wait, 6),
    (Action::Short, 5),
    (Action::Stale, 3),
    (Action::End, 2),
    (Action::Reset, 2),
    (Action::Vanish, 1),
];

#[derive(Debug, Clone, Copy)]
enum Action {
    Nothing,
    Say,
    EndInput,
    FailInput,
    Echo,
    Greet,
    Flood,
    Room,
    ReadOutput,
    Wait,
    Short,
    Stale,
    End,
    Reset,
    Vanish,
}

struct Conversation {
    world: World,
    tape: Tape,
    weights: Vec<u32>,
    told: Option<Vec<String>>,
    by_line: bool,
    /// What the input has said that is to be sent; the terminator is the end of it.
    said: Vec<u8>,
    inside_line: bool,
    /// It has said the terminator; it has ended; it has failed.
    left: bool,
    over: bool,
    input_failed: bool,
    /// What the poll has to tell, and whether a thread has woken it.
    event: Readiness,
    woken: bool,
    wakes: Option<Instant>,
    /// Of the peer: it has closed its side, a call has failed, it does nothing more.
    ended: bool,
    damaged: bool,
    vanished: bool,
    outcome: Option<Result<(), String>>,
}

impl Conversation {
    fn new(mut tape: Tape, told: bool) -> Self {
        let no_newline = tape.below(4) == 1;
        let terminator = (tape.below(4) == 1).then(|| TERMINATOR.to_owned());
        let expect = (tape.below(4) == 1).then(|| EXPECTED.to_owned());
        let timeout = [None, None, Some(1), Some(5)][tape.below(4) as usize].map(Duration::from_secs);
        let conclusive = tape.below(4) != 1;
        let weights = ACTIONS.iter().map(|&(_, weight)| weight * [1, 0, 4, 1][tape.below(4) as usize]).collect();
        let told = told.then(|| {
            vec![format!(
                "options: no newline {no_newline}, terminator {terminator:?}, expect {expect:?}, timeout {timeout:?}, short reads \
                 are conclusive {conclusive}"
            )]
        });
        let by_line = no_newline || terminator.is_some();
        let world = World::new(|config| {
            (config.no_newline, config.terminator, config.expect, config.timeout) =
                (no_newline, terminator, expect, timeout);
        });
        world.wire.0.borrow_mut().conclusive = conclusive;
        world.wire.0.borrow_mut().room = usize::MAX / 2;
        Conversation {
            event: nothing(world.client.token),
            wakes: Some(world.now),
            world,
            tape,
            weights,
            told,
            by_line,
            said: Vec::new(),
            inside_line: false,
            left: false,
            over: false,
            input_failed: false,
            woken: false,
            ended: false,
            damaged: false,
            vanished: false,
            outcome: None,
        }
    }

    fn run(&mut self) {
        self.rest();
        while self.outcome.is_none() && self.tape.advance(STORM) {
            let action = ACTIONS[self.tape.weighted(&self.weights)].0;
            let told = self.act(action);
            self.tell(|| told);
            self.rest();
        }
        self.tape.end();
        self.calm();
        self.finish();
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            told.push(what());
        }
    }

    fn act(&mut self, action: Action) -> String {
        let is_there = !self.ended && !self.vanished;
        match action {
            Action::Say if !self.over => return self.say(),
            Action::EndInput => self.end_input(),
            Action::FailInput if !self.over => {
                let failed = Item::Failed(io::ErrorKind::IsADirectory.into());
                self.world.items.as_ref().expect("the input is open").send(failed).expect("there is room");
                self.input_failed = true;
                self.end_input();
            }
            Action::Echo if is_there => {
                let count = 1 << self.tape.below(20);
                self.echo(count);
                return format!("the peer echoes up to {count} bytes, in all {}", self.world.echoed);
            }
            Action::Greet if is_there => {
                let greeting = GREETINGS[self.tape.below(4) as usize];
                self.arrive(greeting);
                return format!("the peer says {}", greeting.escape_ascii());
            }
            Action::Flood if is_there => self.arrive(&[b'.'; 300_000]),
            Action::Room => {
                let room = [usize::MAX / 2, 0, 1, 1000][self.tape.below(4) as usize];
                self.world.wire.0.borrow_mut().room = room;
                self.event.writable |= room > 0;
                return format!("there is room for {room} bytes");
            }
            Action::ReadOutput => self.woken |= self.world.read_output(),
            Action::Wait => {
                let time = Duration::from_millis(1 << self.tape.below(14));
                self.wait(time);
                return format!("{time:?} pass");
            }
            Action::Short => {
                let answers = [Answer::Interrupted, Answer::Take(1)];
                let [interrupted, short] = answers;
                let script = self.world.wire.0.borrow();
                let reads_short = !script.conclusive && script.reads.is_empty() && !script.incoming.is_empty();
                drop(script);
                // A call that comes short with room or bytes left would be told of again: an edge follows.
                self.world.wire.reads(if reads_short { &answers } else { &answers[..1] });
                self.world.wire.writes(&[interrupted, short, Answer::WouldBlock]);
                (self.event.readable, self.event.writable) = (true, true);
            }
            Action::Stale => {
                let bits = self.tape.below(8);
                self.event.readable |= bits & 1 > 0;
                self.event.writable |= bits & 2 > 0;
                self.event.read_closed |= bits & 4 > 0;
            }
            Action::End if is_there => {
                if self.tape.below(2) == 1 {
                    // It had not read all that it was sent.
                    self.world.wire.0.borrow_mut().established = Some(io::ErrorKind::ConnectionReset);
                    self.damaged = true;
                }
                self.end();
            }
            Action::Reset if is_there => {
                self.damaged = true;
                self.world.wire.writes(&[Answer::Reset; 8]);
                if self.tape.below(2) == 1 {
                    self.world.wire.0.borrow_mut().reads.push_front(Answer::Reset);
                }
                self.end();
            }
            Action::Vanish => self.vanished = true,
            _ => return "nothing".to_owned(),
        }
        format!("{action:?}")
    }

    fn say(&mut self) -> String {
        let word = self.tape.below(WORDS.len() as u32 + 1) as usize;
        let end = [&b"\n"[..], b"\r\n", b""][self.tape.below(3) as usize];
        let mut bytes = WORDS.get(word).map_or_else(|| vec![b'x'; 64 * 1024], |word| word.to_vec());
        let is_piece = bytes.len() > 1000;
        if !is_piece {
            bytes.extend_from_slice(end);
        }
        if bytes.is_empty() {
            return "nothing".to_owned();
        }
        // Of a line that is read as one, only the last may lack its newline.
        let line_ends = bytes.ends_with(b"\n") || self.by_line && !is_piece;
        let is_last = self.by_line && line_ends && !bytes.ends_with(b"\n");
        if !self.left {
            let bare = without_newline(&bytes);
            let whole = line_ends && !self.inside_line;
            self.said.extend_from_slice(if self.world.config.no_newline { bare } else { &bytes });
            self.left = whole && self.world.config.is_terminator(bare);
        }
        self.inside_line = !line_ends;
        let told = format!("the input says {} bytes: {}", bytes.len(), bytes[..bytes.len().min(20)].escape_ascii());
        let items = self.world.items.as_ref().expect("the input is open");
        items.send(Item::Piece { bytes, line_ends }).expect("there is room");
        self.woken = true;
        if is_last {
            self.end_input();
        }
        told
    }

    fn end_input(&mut self) {
        self.over = true;
        self.world.items = None;
        self.woken = true;
    }

    fn arrive(&mut self, bytes: &[u8]) {
        self.world.wire.arrive(bytes);
        self.event.readable = true;
    }

    fn echo(&mut self, count: usize) {
        let before = self.world.echoed;
        self.world.echo(count);
        self.event.readable |= self.world.echoed > before;
    }

    fn end(&mut self) {
        self.ended = true;
        self.world.wire.end();
        (self.event.readable, self.event.read_closed) = (true, true);
    }

    /// Time passes, and the loop runs when it is due.
    fn wait(&mut self, time: Duration) {
        let until = self.world.now + time;
        while let Some(wakes) = self.wakes.filter(|&wakes| wakes <= until && self.outcome.is_none()) {
            self.world.now = self.world.now.max(wakes);
            self.rest();
        }
        self.world.now = self.world.now.max(until);
    }

    /// The loop runs until it sleeps, or is done.
    fn rest(&mut self) {
        for _ in 0..10_000 {
            let is_due = self.wakes.is_some_and(|wakes| wakes <= self.world.now);
            let event = std::mem::replace(&mut self.event, nothing(self.world.client.token));
            let told = event.readable || event.writable || event.read_closed;
            if self.outcome.is_some() || !(told || is_due || std::mem::take(&mut self.woken)) {
                return;
            }
            let room = self.world.wire.0.borrow().room;
            let ready = [event];
            self.world.turn(&ready[..usize::from(told)]);
            self.check(room);
            if self.outcome.is_some() {
                return;
            }
            let sleep = self.world.client.sleep(&self.world.input, &self.world.screen);
            self.wakes = sleep.map(|sleep| self.world.now + sleep);
            self.tell(|| format!("    turn, then sleeps {sleep:?}"));
            if sleep != Some(Duration::ZERO) && !self.is_told() {
                let state = self.world.state();
                self.world.turn(&[]);
                assert_eq!(self.world.state(), state, "it slept while there was work");
            }
        }
        panic!("it spins");
    }

    /// Whether the poll would return at once.
    fn is_told(&self) -> bool {
        self.event.readable || self.event.writable || self.event.read_closed || self.woken
    }

    /// What must hold after each turn.
    fn check(&mut self, room: usize) {
        let world = &mut self.world;
        if let Some(outcome) = world.client.outcome(&world.input, &world.screen) {
            self.outcome = Some(outcome.map_err(|error| error.to_string()));
        }
        let script = world.wire.0.borrow();
        // It was told that there is no more room, and there is some since: what is sent is taken in time.
        self.event.writable |= room > 0 && script.room == 0 && !self.vanished;
        let unprinted = script.read.len().saturating_sub(world.printed.len());
        drop(script);
        if self.event.writable {
            world.wire.0.borrow_mut().room = 10_000;
        }
        assert!(unprinted <= MEMORY, "{unprinted} bytes are in memory");
    }

    /// The peer and the reader are willing, or not there; the input ends.
    fn calm(&mut self) {
        self.end_input();
        for _ in 0..1000 {
            if self.outcome.is_some() {
                return;
            }
            if !self.vanished && !self.ended {
                self.world.wire.0.borrow_mut().room = usize::MAX / 2;
                self.event.writable = true;
                self.echo(usize::MAX);
                if self.world.wire.shut() && self.world.echoed == self.world.wire.written().len() {
                    self.end();
                }
            }
            while self.world.read_output() {
                self.woken = true;
                self.rest();
            }
            self.rest();
            if self.outcome.is_some() {
                return;
            }
            match self.wakes {
                _ if self.is_told() => {}
                Some(wakes) => self.world.now = self.world.now.max(wakes),
                None if self.vanished && !self.ended => self.end(),
                None if !self.vanished && !self.ended => {}
                None => panic!("it never ends: {:?}", self.world.state()),
            }
        }
        panic!("it goes on: {:?}", self.world.state());
    }

    /// What must hold in the end.
    fn finish(&mut self) {
        self.world.screen.turn().expect("it is taken");
        while self.world.read_output() {
            self.world.screen.turn().expect("it is taken");
        }
        let (config, read) = (self.world.config, self.world.wire.0.borrow().read.clone());
        let mut printed = std::mem::take(&mut self.world.printed);
        if config.no_newline {
            printed.retain(|&byte| byte != b'\n'); // of these the peer has sent none
        }
        assert!(printed == read, "{} bytes are printed, and {} have come", printed.len(), read.len());
        let mut rest = read.iter();
        let is_echoed = self.said.iter().all(|byte| rest.any(|other| other == byte));
        let outcome = self.outcome.clone().expect("it has ended");
        self.tell(|| format!("it ends with {outcome:?}"));
        if config.expect.is_some() {
            let has_come = memmem::find(&read, EXPECTED.as_bytes()).is_some();
            assert_eq!(outcome.is_ok(), has_come, "{outcome:?}");
        } else if outcome.is_ok() {
            assert!(is_echoed, "it ends well, and not all that was said has come back");
            assert!(!self.input_failed || self.left, "it ends well, and its input has failed");
        } else {
            let excused = self.damaged || self.input_failed || config.timeout.is_some() || self.has_unsent_input();
            let reason = excused || self.ended_early() || self.vanished;
            assert!(reason, "it ends without a reason: {outcome:?}");
            let is_missing = self.world.echoed < self.said.len();
            assert!(excused || is_missing, "all that was said has come back: {outcome:?}");
        }
    }

    /// Whether the peer has ended before it had echoed all that was said.
    fn ended_early(&self) -> bool {
        self.ended && self.world.echoed < self.said.len()
    }

    /// Whether the peer has ended before all input was sent, if only the newline that is not.
    fn has_unsent_input(&self) -> bool {
        self.ended && self.world.input.waiting() > 0
    }
}

struct Conversations;

impl Simulation for Conversations {
    fn play(&self, tape: Tape, told: bool) -> (Result<(), Failure>, Steps, Vec<String>) {
        let mut conversation = Conversation::new(tape, told);
        let result = attempt(|| conversation.run());
        (result, conversation.tape.steps, conversation.told.unwrap_or_default())
    }
}

/// Stories that have found a fault, as they were told.
const STORIES: &[&[&[u32]]] = &[
    // The end of a line that was too long to be read at once passed for a terminator.
    &[&[0, 1], &[1, 6], &[1, 3], &[1]],
];

#[test]
fn simulated_conversations_end_as_they_should() {
    seeds(2000).for_each(|seed| Conversations.simulate(seed, ""));
}

#[test]
fn kept_conversations_end_well() {
    Conversations.play_kept(STORIES);
}

#[test]
#[ignore = "runs for as long as it is told"]
fn simulated_conversations_for_as_long_as_is_asked() {
    endless_seeds().for_each(|seed| Conversations.simulate(seed, ""));
}
