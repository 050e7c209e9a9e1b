//! The connection state machine and the loop against sockets that follow a script.
//!
//! A [`Scripted`](super::super::scripted) socket answers each call as its script says: short reads, short writes, WouldBlock, Interrupted,
//! resets, in any order. What is tested here are the facts of non-blocking I/O, one by one, and then any
//! interleaving of them.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mio::Token;
use proptest::prelude::*;
use rustix::io::Errno;

use super::super::outbound::Outbound;
use super::super::scripted::Answer::{self, *};
use super::super::scripted::{Scripted, ScriptedListener, Wire, read_closed, readable, writable};
use super::super::socket::Origin;
use super::super::{CLOSE_TIMEOUT, LINGER_TIMEOUT, Refusal};
use super::*;

const READ_SIZE: usize = 16;

/// What is received is sent back; and what happened is noted.
#[derive(Default)]
struct Mirror {
    /// Close after so many bytes.
    close_after: Option<usize>,
    /// When each connection is given up that has received nothing.
    due: Option<Instant>,
    /// Then it is closed, and not aborted.
    close_expired: bool,
    /// What is sent at the peer's end.
    last_word: &'static [u8],
    /// The connection is aborted by what comes.
    aborts: bool,
    seen: Vec<String>,
}

impl<S: Stream> Protocol<S> for Mirror {
    type State = usize;

    fn accept(&mut self, _: Origin, _: Instant) -> Result<usize, Refusal> {
        Ok(0)
    }
    fn opened(&mut self, _: &mut Transport<'_, S>, _: &mut usize) {
        self.seen.push("opened".into());
    }
    fn received(&mut self, transport: &mut Transport<'_, S>, total: &mut usize, bytes: &[u8]) {
        *total += bytes.len();
        if self.aborts {
            return transport.abort();
        }
        transport.write(bytes);
        if self.close_after.is_some_and(|limit| *total >= limit) {
            transport.close();
        }
    }
    fn deadline(&self, total: &usize) -> Option<Instant> {
        self.due.filter(|_| *total == 0)
    }
    fn expired(&mut self, transport: &mut Transport<'_, S>, _: &mut usize) {
        if !self.close_expired {
            return transport.abort();
        }
        self.seen.push("expired".into());
        transport.close();
    }
    fn eof(&mut self, transport: &mut Transport<'_, S>, _: &mut usize) {
        transport.write(self.last_word);
        transport.close();
    }
    fn read_drained(&mut self, _: &mut Transport<'_, S>, _: &mut usize) {
        self.seen.push("read_drained".into());
    }
    fn flushed(&mut self, _: &mut Transport<'_, S>, _: &mut usize) {
        self.seen.push("flushed".into());
    }
    fn closed(&mut self, _: Token, _: usize, reason: &CloseReason) {
        self.seen.push(match reason {
            CloseReason::Failed(error) => format!("failed: {:?}", error.kind()),
            reason => format!("{reason:?}").to_lowercase(),
        });
    }
}

/// A loop with a clock of its own, and scripted sockets on it.
struct World {
    reactor: Reactor<Scripted, Mirror>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        World::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            read_size: READ_SIZE,
            max_read_size: READ_SIZE,
            read_budget: 4 * READ_SIZE,
            first_token: 1000,
            ..Settings::default()
        };
        change(&mut settings);
        let reactor = Reactor::new(Mirror::default(), settings);
        World { now: reactor.began, reactor }
    }

    fn open(&mut self) -> (Token, Wire) {
        let kernel = Wire::default();
        let token = self.reactor.open(|_, _| Ok((kernel.socket(), 0))).unwrap();
        (token, kernel)
    }

    fn turn(&mut self, ready: &[Readiness]) {
        self.reactor.turn_with(self.now, ready.iter().copied());
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.turn(&[]);
    }

    fn waiting(&self, token: Token) -> usize {
        self.reactor.slots[self.reactor.key(token)].connection.waiting()
    }

    fn seen(&mut self) -> Vec<String> {
        std::mem::take(&mut self.reactor.protocol_mut().seen)
    }
}

#[test]
fn a_paused_connection_is_not_read_until_resumed() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    world.reactor.with(token, |_, transport, _| transport.pause_reading());
    kernel.arrive(b"wait");
    world.turn(&[readable(token)]);
    assert_eq!((kernel.calls().0, world.reactor.sleep(world.now)), (0, None), "nothing is read, and nothing spins");
    world.reactor.drain();
    world.turn(&[]);
    assert!(!kernel.shut(), "a stop does not take it for drained");
    world.reactor.with(token, |_, transport, _| transport.resume_reading());
    assert_eq!(world.reactor.sleep(world.now), Some(Duration::ZERO), "no event will tell of what has arrived");
    world.turn(&[]);
    kernel.assert_echoed(4);
    world.turn(&[]);
    assert!(kernel.shut(), "and then it is drained");
}

#[test]
fn a_paused_connection_can_be_closed() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    world.reactor.with(token, |_, transport, _| {
        transport.pause_reading();
        transport.close();
    });
    kernel.arrive(b"too late");
    kernel.end();
    world.turn(&[read_closed(token)]);
    world.turn(&[]);
    assert_eq!((kernel.dropped(), kernel.written()), (true, vec![]));
}

#[test]
fn a_message_costs_one_read_and_one_write() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    for message in 1..=10 {
        kernel.reads(&[Take(5)]);
        world.turn(&[readable(token)]);
        assert_eq!(kernel.calls(), (message, message));
    }
    kernel.assert_echoed(50);
    assert_eq!(world.reactor.sleep(world.now), None, "nothing left to do");
}

#[test]
fn rest_of_a_partial_send_waits_for_writable() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(10)]).writes(&[Take(3)]);
    world.turn(&[readable(token)]);
    assert_eq!((kernel.calls(), world.waiting(token)), ((1, 1), 7), "a short send is not retried at once");
    world.turn(&[]);
    assert_eq!(kernel.calls(), (1, 1), "nor without WRITABLE");
    kernel.writes(&[Take(2)]);
    world.turn(&[writable(token)]);
    assert_eq!(world.waiting(token), 5);
    world.turn(&[writable(token)]);
    kernel.assert_echoed(10);
    assert_eq!(world.waiting(token), 0);
    assert!(world.seen().contains(&"flushed".to_owned()));
    let counters = world.reactor.counters();
    assert_eq!((counters.partial_sends, counters.received_bytes, counters.sent_bytes), (2, 10, 10));
}

#[test]
fn a_send_that_would_block_keeps_everything() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(10)]).writes(&[WouldBlock, WouldBlock]);
    world.turn(&[readable(token)]);
    world.turn(&[writable(token)]); // spurious
    assert_eq!(world.waiting(token), 10);
    world.turn(&[writable(token)]);
    kernel.assert_echoed(10);
}

#[test]
fn what_is_sent_later_stays_behind_what_waits() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.writes(&[Take(1)]);
    // The socket has room again by the second send, but no event has said so yet.
    world.reactor.with(token, |_, peer, _| {
        peer.write(b"first");
        peer.write(b"second");
    });
    assert_eq!(kernel.0.borrow().written, b"f");
    world.turn(&[writable(token)]);
    assert_eq!(kernel.0.borrow().written, b"firstsecond");
}

#[test]
fn writable_without_anything_to_send_costs_no_call() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    world.turn(&[writable(token)]);
    assert_eq!(kernel.calls(), (0, 0));
}

#[test]
fn connection_stays_readable_until_read_finds_end() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(READ_SIZE), Take(READ_SIZE), Take(1)]);
    world.turn(&[readable(token)]); // one edge
    kernel.assert_echoed(2 * READ_SIZE + 1);
    assert_eq!(kernel.calls().0, 3, "the short read was the last");
    kernel.reads(&[Take(READ_SIZE), WouldBlock]);
    world.turn(&[readable(token)]);
    assert_eq!(kernel.calls().0, 5, "a full read proves nothing");
}

#[test]
fn short_read_after_peer_closed_still_reads_end() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(5), End]);
    world.turn(&[read_closed(token)]); // the only edge there will be
    kernel.assert_echoed(5);
    assert!(kernel.dropped());
    assert_eq!(world.seen(), ["opened", "finished"]);
}

#[test]
fn emulated_edges_need_would_block_to_end() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.0.borrow_mut().conclusive = false;
    kernel.reads(&[Take(5), Take(5), WouldBlock]).writes(&[Take(5), Take(3), Take(1), WouldBlock]);
    world.turn(&[readable(token)]);
    assert_eq!((kernel.calls(), world.waiting(token)), ((2, 4), 1));
    world.turn(&[writable(token)]);
    kernel.assert_echoed(10);
    assert_eq!(kernel.calls().0, 3);
}

#[test]
fn busy_peer_spends_budget_and_others_get_theirs() {
    let mut world = World::new();
    let (busy, busy_kernel) = world.open();
    let (quiet, quiet_kernel) = world.open();
    busy_kernel.reads(&[Take(READ_SIZE); 100]);
    quiet_kernel.reads(&[Take(1)]);
    world.turn(&[readable(busy), readable(quiet)]);
    quiet_kernel.assert_echoed(1);
    busy_kernel.assert_echoed(4 * READ_SIZE);
    assert_eq!(world.reactor.sleep(world.now), Some(Duration::ZERO), "it waits in the ready queue, not for an edge");
    quiet_kernel.reads(&[Take(1)]);
    world.turn(&[readable(quiet)]);
    quiet_kernel.assert_echoed(2);
    busy_kernel.assert_echoed(8 * READ_SIZE);
    while world.reactor.sleep(world.now).is_some() {
        world.turn(&[]);
    }
    busy_kernel.assert_echoed(100 * READ_SIZE);
}

#[test]
fn reads_grow_only_while_taken_whole() {
    let mut world = World::with(|settings| {
        settings.max_read_size = 4 * READ_SIZE;
        settings.read_budget = 100 * READ_SIZE;
    });
    let (token, kernel) = world.open();
    let most = Take(100 * READ_SIZE);
    kernel.reads(&[most, most, most, most, WouldBlock]);
    world.turn(&[readable(token)]);
    kernel.assert_echoed((1 + 2 + 4 + 4) * READ_SIZE);
    // A part that is not taken: what waits is this one read, and the next is as small as the first was.
    kernel.reads(&[most]).writes(&[Take(1)]);
    world.turn(&[readable(token)]);
    assert_eq!(world.waiting(token), 4 * READ_SIZE - 1);
    kernel.reads(&[most, WouldBlock]);
    world.turn(&[writable(token)]);
    kernel.assert_echoed((11 + 4 + 1) * READ_SIZE);
    // One that does not fill its reads is no reason for larger ones.
    kernel.reads(&[Take(1)]);
    world.turn(&[readable(token)]);
    kernel.reads(&[most, most, WouldBlock]);
    world.turn(&[readable(token)]);
    kernel.assert_echoed(16 * READ_SIZE + 1 + (2 + 4) * READ_SIZE);
}

#[test]
fn unreading_peer_holds_at_most_one_read() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(READ_SIZE); 100]).writes(&[WouldBlock]);
    for _ in 0..10 {
        world.turn(&[readable(token)]);
        assert_eq!((kernel.calls().0, world.waiting(token)), (1, READ_SIZE));
    }
    assert_eq!(world.reactor.sleep(world.now), None, "and it does not keep the loop awake");
    world.turn(&[writable(token)]); // no new READABLE edge is needed
    kernel.assert_echoed(5 * READ_SIZE);
}

#[test]
fn half_closed_peer_gets_everything_before_the_end() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(10), End]).writes(&[Take(4)]);
    world.turn(&[read_closed(token)]);
    assert_eq!((world.waiting(token), kernel.dropped()), (6, false));
    kernel.writes(&[Take(5)]);
    world.turn(&[writable(token)]);
    assert!(!kernel.dropped());
    world.turn(&[writable(token)]);
    kernel.assert_echoed(10);
    assert!(kernel.dropped());
    assert_eq!(world.seen(), ["opened", "flushed", "finished"]);
}

#[test]
fn a_reset_ends_that_connection_alone() {
    type Setup = fn(&Wire);
    let resets: [(Setup, &str); 4] = [
        (|kernel| _ = kernel.reads(&[Reset]), "ConnectionReset"),
        (|kernel| _ = kernel.reads(&[Take(READ_SIZE), Reset]), "ConnectionReset"),
        (|kernel| _ = kernel.reads(&[Take(3)]).writes(&[Reset]), "BrokenPipe"),
        (|kernel| _ = kernel.reads(&[Take(3)]).writes(&[Take(1), Reset]), "BrokenPipe"),
    ];
    for (setup, kind) in resets {
        let mut world = World::new();
        let (token, kernel) = world.open();
        let (other, other_kernel) = world.open();
        setup(&kernel);
        other_kernel.reads(&[Take(3)]);
        world.turn(&[readable(token), readable(other)]);
        world.turn(&[writable(token)]);
        assert!(kernel.dropped());
        other_kernel.assert_echoed(3);
        assert!(world.seen().contains(&format!("failed: {kind}")));
        assert_eq!((world.reactor.counters().closed_as("failed"), world.reactor.len()), (1, 1));
    }
}

#[test]
fn interrupted_calls_are_made_again() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Interrupted, Interrupted, Take(9)]).writes(&[Interrupted, Take(4), Interrupted, Take(5)]);
    world.turn(&[readable(token)]);
    world.turn(&[writable(token)]);
    kernel.assert_echoed(9);
}

#[test]
fn stale_event_does_no_harm_to_slots_successor() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Reset]);
    world.turn(&[readable(token)]);
    assert!(kernel.dropped());
    world.turn(&[read_closed(token)]); // nobody there
    let (successor, kernel) = world.open();
    assert_eq!(successor, token, "the slab reuses the key");
    world.turn(&[Readiness { writable: true, ..read_closed(token) }]);
    assert!(!kernel.dropped());
    kernel.reads(&[Take(5)]);
    world.turn(&[readable(successor)]);
    kernel.assert_echoed(5);
}

#[test]
fn slots_successor_inherits_no_place_in_ready_queue() {
    let mut world = World::new();
    let (first, kernel) = world.open();
    kernel.reads(&[Take(READ_SIZE); 5]);
    world.turn(&[readable(first)]); // its budget is spent: it is queued,
    world.reactor.abort_all(); // and gone
    let (second, kernel) = world.open();
    assert_eq!(first, second);
    kernel.reads(&[Take(READ_SIZE); 10]);
    world.turn(&[readable(second)]);
    kernel.assert_echoed(4 * READ_SIZE);
}

#[test]
fn closing_sends_what_waits_and_discards_the_rest() {
    let mut world = World::new();
    world.reactor.protocol_mut().close_after = Some(READ_SIZE);
    let (token, kernel) = world.open();
    kernel.reads(&[Take(READ_SIZE), Take(5)]).writes(&[Take(1)]);
    world.turn(&[readable(token)]);
    assert!(!kernel.shut(), "not while bytes wait");
    world.turn(&[writable(token)]);
    assert!(kernel.shut());
    assert_eq!(kernel.written().len(), READ_SIZE, "nothing after the close is echoed");
    kernel.reads(&[Take(READ_SIZE), End]);
    assert!(!kernel.dropped(), "a close with unread bytes would reset what was sent");
    world.turn(&[read_closed(token)]);
    assert!(kernel.dropped());
    assert_eq!(world.reactor.counters().closed_as("finished"), 1);
    assert_eq!(world.reactor.counters().received_bytes as usize, READ_SIZE, "what was thrown away is not counted");
}

#[test]
fn peer_that_goes_on_sending_is_lingered_briefly() {
    let mut world = World::new();
    world.reactor.protocol_mut().close_after = Some(1);
    let (token, kernel) = world.open();
    kernel.reads(&[Take(1)]);
    world.turn(&[readable(token)]);
    assert!(kernel.shut());
    let mut waited = Duration::ZERO;
    while !kernel.dropped() {
        kernel.reads(&[Take(1)]); // it goes on sending
        world.turn(&[readable(token)]);
        world.pass(Duration::from_millis(10));
        waited += Duration::from_millis(10);
        assert!(waited < LINGER_TIMEOUT * 2);
    }
    assert!(waited >= LINGER_TIMEOUT, "{waited:?}");
    assert!(!kernel.reset(), "it has everything that it was to have");
    assert_eq!(world.reactor.sleep(world.now), None);
}

#[test]
fn closed_slow_reader_that_sends_on_has_deadline() {
    let mut world = World::new();
    world.reactor.protocol_mut().close_after = Some(READ_SIZE);
    let (token, kernel) = world.open();
    kernel.reads(&[Take(READ_SIZE)]).writes(&[WouldBlock]);
    world.turn(&[readable(token)]);
    let mut waited = Duration::ZERO;
    while !kernel.dropped() {
        kernel.reads(&[Take(READ_SIZE); 100]);
        if waited.as_secs_f64().fract() < 0.01 && kernel.written().len() < READ_SIZE - 1 {
            kernel.writes(&[Take(1), WouldBlock]);
            world.turn(&[writable(token)]);
        }
        world.turn(&[readable(token)]);
        world.pass(Duration::from_millis(10));
        waited += Duration::from_millis(10);
        assert!(waited < CLOSE_TIMEOUT * 2, "whatever the peer does");
    }
    assert!(waited >= CLOSE_TIMEOUT, "{waited:?}");
    assert!(kernel.reset(), "part of an answer does not look like the whole");
    assert_eq!(world.reactor.counters().closed_as("stalled"), 1);
}

#[test]
fn urgent_data_ends_one_read_not_all_reading() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    // recv stops in front of the urgent byte, and the one event tells of everything that has come.
    kernel.reads(&[Take(3), Take(4)]);
    world.turn(&[Readiness { urgent: true, ..readable(token) }]);
    kernel.assert_echoed(7);
    assert_eq!(kernel.calls().0, 3, "only WouldBlock has ended the reading");
    kernel.reads(&[Take(5)]);
    world.turn(&[readable(token)]);
    assert_eq!(kernel.calls().0, 4, "a short read proves something again");
}

#[test]
fn a_stale_read_closed_costs_one_read() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    world.turn(&[read_closed(token)]);
    assert_eq!(kernel.calls().0, 1);
    for message in 1..=5 {
        kernel.reads(&[Take(5)]);
        world.turn(&[readable(token)]);
        assert_eq!(kernel.calls().0, 1 + message);
    }
}

#[test]
fn connecting_socket_that_is_readable_waits_for_writable() {
    let mut world = World::new();
    let kernel = Wire::default();
    kernel.0.borrow_mut().connecting = true;
    let token = world.reactor.connect(|_, _| Ok((kernel.socket(), 0))).unwrap();
    world.turn(&[readable(token)]);
    assert_eq!(world.reactor.sleep(world.now), None, "it does not keep the loop awake");
}

#[test]
fn lost_bytes_are_told_by_a_reset() {
    type Loss = fn(&mut World, Token);
    let losses: [Loss; 2] = [|world, token| world.reactor.abort(token), |world, _| world.reactor.abort_all()];
    for lose in losses {
        let mut world = World::new();
        let (token, kernel) = world.open();
        kernel.reads(&[Take(10)]).writes(&[Take(4)]);
        world.turn(&[readable(token)]);
        lose(&mut world, token);
        assert!(kernel.dropped() && kernel.reset());
    }
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(10)]).writes(&[Take(4), Fail(Errno::NOBUFS)]);
    world.turn(&[readable(token)]);
    world.turn(&[writable(token)]);
    assert!(kernel.dropped() && kernel.reset(), "a failed send");
    let mut world = idle_world();
    let (_, kernel) = world.open();
    world.pass(IDLE * 2);
    assert!(kernel.dropped() && !kernel.reset(), "an idle one has lost nothing");
}

#[test]
fn missed_protocol_deadline_ends_the_connection() {
    let mut world = World::new();
    world.reactor.protocol_mut().due = Some(world.now + Duration::from_millis(500));
    let (_, silent) = world.open();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(1)]);
    world.turn(&[readable(token)]);
    world.pass(Duration::from_millis(499));
    assert!(!silent.dropped(), "nobody's time runs out early");
    world.pass(Duration::from_millis(3));
    assert!(silent.dropped() && !kernel.dropped());
    assert_eq!(world.reactor.sleep(world.now), None);
}

#[test]
fn closed_connection_has_no_protocol_deadline() {
    let mut world = World::new();
    world.reactor.protocol_mut().due = Some(world.now + Duration::from_millis(500));
    world.reactor.protocol_mut().close_expired = true;
    let (_, kernel) = world.open();
    world.pass(Duration::from_millis(502));
    assert_eq!(world.seen(), ["opened", "expired"]);
    // To within a slot of the timer wheel.
    let until_end = LINGER_TIMEOUT..LINGER_TIMEOUT * 11 / 10;
    let sleep = world.reactor.sleep(world.now);
    assert!(sleep.is_some_and(|sleep| until_end.contains(&sleep)), "nothing is due but the end: {sleep:?}");
    world.pass(Duration::from_millis(100));
    assert!(world.seen().is_empty() && !kernel.dropped());
    world.pass(LINGER_TIMEOUT * 11 / 10);
    assert!(kernel.dropped());
}

#[test]
fn untaken_last_word_ends_at_the_deadline() {
    let mut world = World::new();
    world.reactor.protocol_mut().due = Some(world.now + Duration::from_millis(500));
    world.reactor.protocol_mut().close_expired = true;
    world.reactor.protocol_mut().last_word = b"never taken";
    let (token, kernel) = world.open();
    kernel.writes(&[WouldBlock]);
    kernel.reads(&[End]);
    world.turn(&[readable(token)]);
    assert!(!kernel.dropped(), "what waits may be taken yet");
    world.pass(Duration::from_millis(502));
    assert!(kernel.dropped() && kernel.0.borrow().reset);
    assert_eq!(world.seen(), ["opened", "stalled"], "there was nothing that its protocol could do");
    assert_eq!(world.reactor.sleep(world.now), None);
}

#[test]
fn aborted_connection_is_told_nothing_more() {
    let mut world = World::new();
    world.reactor.protocol_mut().aborts = true;
    let (token, kernel) = world.open();
    kernel.arrive(b"too much");
    world.turn(&[readable(token)]);
    assert_eq!(world.seen(), ["opened", "aborted"]);
}

#[test]
fn protocol_with_more_is_called_next_turn() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    world.reactor.with(token, |_, transport, _| transport.call_again());
    assert_eq!(world.reactor.sleep(world.now), Some(Duration::ZERO));
    world.turn(&[]);
    assert_eq!((world.seen(), kernel.calls()), (vec!["opened".to_owned(), "flushed".to_owned()], (0, 0)));
    assert_eq!(world.reactor.sleep(world.now), None, "once");
    // While something waits it is called when that has left, and no sooner.
    kernel.writes(&[WouldBlock]);
    world.reactor.with(token, |_, transport, _| {
        transport.write(b"waits");
        transport.call_again();
    });
    assert_eq!(world.reactor.sleep(world.now), None);
    world.turn(&[writable(token)]);
    assert!(world.seen().contains(&"flushed".to_owned()));
}

#[test]
fn failing_listener_does_not_hold_others_up() {
    for error in [Errno::CONNABORTED, Errno::INVAL, Errno::PERM] {
        let mut world = World::new();
        let (broken, sound) = (ScriptedListener::default(), ScriptedListener::default());
        for listener in [&broken, &sound] {
            world.reactor.listen(|_| Ok(listener.clone())).unwrap();
        }
        broken.0.borrow_mut().errors.extend([error; 1000]);
        sound.queue(200);
        let mut turns = 0;
        while world.reactor.sleep(world.now) == Some(Duration::ZERO) {
            world.turn(&[]);
            turns += 1;
            assert!(turns < 20, "{error}: it spins");
        }
        assert_eq!(sound.waiting(), 0, "{error}");
        assert!(world.reactor.sleep(world.now).is_some(), "{error}: it is tried again");
        assert_eq!(world.reactor.counters().accept_pauses, 1, "{error}");
    }
}

#[test]
fn each_listener_counts_its_own_connections() {
    let mut world = World::new();
    let (one, other) = (ScriptedListener::default(), ScriptedListener::default());
    for listener in [&one, &other] {
        world.reactor.listen(|_| Ok(listener.clone())).unwrap();
    }
    let counts = |world: &World| world.reactor.listeners().iter().map(|it| (it.accepted, it.open)).collect::<Vec<_>>();
    let (own, _) = world.open();
    one.queue(2);
    world.turn(&[]);
    other.queue(1);
    world.reactor.note(readable(Token(1000 + Settings::TOKENS / 2 + 1)));
    world.turn(&[]);
    assert_eq!(counts(&world), [(2, 2), (1, 1)]);
    // A slot that changes hands belongs to whoever has it now.
    world.reactor.abort(own);
    other.queue(1);
    world.reactor.note(readable(Token(1000 + Settings::TOKENS / 2 + 1)));
    world.turn(&[]);
    assert_eq!(counts(&world), [(2, 2), (2, 2)]);
    world.reactor.stop_listening();
    world.reactor.abort_all();
    let _ = world.open();
    world.reactor.abort_all();
    assert_eq!(counts(&world), [(2, 0), (2, 0)]);
}

#[test]
fn a_failing_shutdown_is_a_reset() {
    let mut world = World::new();
    world.reactor.protocol_mut().close_after = Some(1);
    let (token, kernel) = world.open();
    kernel.0.borrow_mut().shutdown_fails = true;
    kernel.reads(&[Take(1)]);
    world.turn(&[readable(token)]);
    assert!(kernel.dropped());
    assert_eq!(world.reactor.counters().closed_as("failed"), 1);
}

const IDLE: Duration = Duration::from_secs(10);

fn idle_world() -> World {
    World::with(|settings| settings.idle_timeout = Some(IDLE))
}

#[test]
fn idle_connection_is_closed_and_active_one_kept() {
    let mut world = idle_world();
    let (_, idle) = world.open();
    let (active, active_kernel) = world.open();
    for _ in 0..24 {
        world.pass(IDLE / 20);
        active_kernel.reads(&[Take(1)]);
        world.turn(&[readable(active)]);
        assert!(world.reactor.sleep(world.now).is_some(), "somebody's deadline is ahead");
    }
    assert!(idle.dropped());
    assert!(!active_kernel.dropped());
    assert_eq!(world.reactor.counters().closed_as("idle"), 1);
    world.pass(IDLE * 2);
    assert!(active_kernel.dropped());
    assert_eq!(world.reactor.sleep(world.now), None);
}

#[test]
fn bytes_taken_without_event_count_as_movement() {
    let mut world = idle_world();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(READ_SIZE)]).writes(&[WouldBlock]);
    world.turn(&[readable(token)]);
    for _ in 0..5 {
        kernel.writes(&[Take(2)]); // the kernel has a little room, too little to say so
        world.pass(IDLE + IDLE / 32);
        assert!(!kernel.dropped(), "slow is not stalled");
    }
    kernel.writes(&[WouldBlock]);
    world.pass(IDLE + IDLE / 32);
    assert!(kernel.dropped());
    assert_eq!((world.reactor.counters().closed_as("stalled"), world.reactor.counters().closed_as("idle")), (1, 0));
}

#[test]
fn bytes_that_arrive_at_the_last_moment_count() {
    let mut world = idle_world();
    let (_, kernel) = world.open();
    kernel.reads(&[Take(3)]); // and its event is in the next batch
    world.pass(IDLE * 2);
    kernel.assert_echoed(3);
    assert!(!kernel.dropped());
}

#[test]
fn a_drain_sends_what_is_owed_and_closes() {
    let mut world = World::new();
    let (_, idle) = world.open();
    let (blocked, blocked_kernel) = world.open();
    let (third, unread) = world.open();
    blocked_kernel.reads(&[Take(10)]).writes(&[WouldBlock, WouldBlock]);
    world.turn(&[readable(blocked)]);
    world.now += LINGER_TIMEOUT; // the idle one has been so for long
    unread.reads(&[Take(5)]);
    world.reactor.drain();
    world.turn(&[]);
    unread.assert_echoed(5);
    assert!(unread.shut() && !unread.dropped(), "what arrives while it is being closed must not reset it");
    assert!(idle.shut());
    assert!(!blocked_kernel.shut());
    world.turn(&[writable(blocked)]);
    blocked_kernel.assert_echoed(10);
    unread.reads(&[End]);
    world.turn(&[read_closed(third)]);
    assert!(unread.dropped());
    world.pass(LINGER_TIMEOUT * 2);
    assert!(world.reactor.is_empty());
    assert_eq!(world.reactor.counters().closed_as("finished"), 3);
}

#[test]
fn an_abort_ends_what_a_drain_could_not() {
    let mut world = World::new();
    let (token, kernel) = world.open();
    kernel.reads(&[Take(10)]).writes(&[WouldBlock, WouldBlock]);
    world.turn(&[readable(token)]);
    world.reactor.drain();
    world.turn(&[]);
    assert!(!kernel.dropped());
    world.reactor.abort_all();
    assert!(kernel.dropped());
    assert_eq!(world.reactor.counters().closed_as("aborted"), 1);
}

#[test]
fn outgoing_connection_opens_once_it_is_established() {
    let mut world = World::new();
    let kernel = Wire::default();
    kernel.0.borrow_mut().connecting = true;
    let token = world.reactor.connect(|_, _| Ok((kernel.socket(), 0))).unwrap();
    world.turn(&[writable(token)]); // spurious
    assert_eq!((world.seen(), kernel.calls()), (vec![], (0, 0)));
    kernel.0.borrow_mut().connecting = false;
    kernel.reads(&[Take(3)]);
    world.turn(&[Readiness { readable: true, ..writable(token) }]);
    kernel.assert_echoed(3);
    assert_eq!(world.seen(), ["opened", "read_drained"]);
}

#[test]
fn an_outgoing_connection_that_is_refused_is_lost() {
    let mut world = World::new();
    let kernel = Wire::default();
    kernel.0.borrow_mut().established = Some(ErrorKind::ConnectionRefused);
    let token = world.reactor.connect(|_, _| Ok((kernel.socket(), 0))).unwrap();
    world.turn(&[writable(token)]);
    assert_eq!(world.seen(), ["failed: ConnectionRefused"]);
}

#[test]
fn failed_connection_attempt_leaves_nothing_behind() {
    let mut world = World::new();
    let error = world.reactor.open(|_, _| Err(ErrorKind::WouldBlock.into())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!((world.reactor.len(), world.reactor.counters().opened), (0, 0));
}

#[test]
fn closed_connections_are_counted_by_their_age() {
    let mut counters = Counters::default();
    for hundredths in [0, 10, 11, 100, 6_000, 100_000_000] {
        counters.close(0, hundredths);
    }
    assert_eq!(counters.lifetimes, [2, 2, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!((counters.closed_total(), counters.lifetime_hundredths), (6, 100_006_121));
    // However long it has been running.
    let (day, opened) = (24 * 60 * 60 * 1000, 400 * 24 * 60 * 60 * 1000);
    assert_eq!(Connection::new(Wire::default().socket(), false, opened).age(opened + 200 * day), 200 * day / 10);
}

#[test]
fn an_idle_connection_is_small() {
    // A descriptor for a socket (mio's is larger in debug builds), and one word of state, as echo has it.
    assert_eq!(size_of::<Option<Slot<i32, Option<Box<u8>>>>>(), 40);
    assert_eq!(size_of::<Outbound>(), size_of::<usize>(), "an empty outbound buffer is one null pointer");
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        6 => (1..2 * READ_SIZE).prop_map(Take),
        3 => Just(WouldBlock),
        2 => Just(Interrupted),
        1 => Just(Take(READ_SIZE)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever the kernel does, what was read is written, in order and once, and no more than one read is ever held.
    #[test]
    fn any_interleaving_echoes_exactly_what_was_read(
        steps in prop::collection::vec(
            (prop::collection::vec(answer(), 0..4), prop::collection::vec(answer(), 0..4), any::<[bool; 3]>()), 0..30),
        reset in prop::option::weighted(0.2, (0..30usize, any::<bool>())),
        conclusive in any::<bool>(),
    ) {
        let mut world = World::with(|settings| settings.max_read_size = 4 * READ_SIZE);
        let (token, kernel) = world.open();
        kernel.0.borrow_mut().conclusive = conclusive;
        for (number, (reads, writes, [readable, writable, read_closed])) in steps.iter().enumerate() {
            kernel.reads(reads).writes(writes);
            match reset {
                Some((at, true)) if at == number => _ = kernel.reads(&[Reset]),
                Some((at, false)) if at == number => _ = kernel.writes(&[Reset]),
                _ => {}
            }
            world.turn(&[Readiness {
                token, readable: *readable, writable: *writable, read_closed: *read_closed, urgent: false,
            }]);
            let script = kernel.0.borrow();
            prop_assert!(script.read.starts_with(&script.written));
            if !script.dropped {
                let held = world.waiting(token);
                prop_assert_eq!(held, script.read.len() - script.written.len());
                prop_assert!(held <= 4 * READ_SIZE);
                prop_assert_eq!(held as u64, world.reactor.counters().waiting_bytes);
            }
        }
        // From here on the kernel is willing, and the peer closes its side.
        kernel.reads(&[End]);
        for _ in 0..200 {
            world.turn(&[Readiness { writable: true, ..read_closed(token) }]);
        }
        prop_assert!(kernel.dropped());
        let counters = *world.reactor.counters();
        prop_assert_eq!(counters.closed_as("finished") + counters.closed_as("failed"), 1);
        prop_assert_eq!(counters.waiting_bytes, 0, "nothing waits for who is gone");
        if counters.closed_as("failed") == 0 {
            let script = kernel.0.borrow();
            prop_assert_eq!(&script.written, &script.read);
            prop_assert_eq!((counters.received_bytes, counters.sent_bytes), (script.read.len() as u64, script.read.len() as u64));
        } else {
            prop_assert!(reset.is_some());
        }
    }
}
