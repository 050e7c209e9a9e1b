//! The whole service in a simulated network: scripted sockets, a scripted poll and a clock of its own.
//!
//! # The model
//!
//! A run is a *storm* of steps, in each of which the network does one thing (somebody connects, sends, reads, closes, asks
//! over HTTP; a datagram comes; time passes; a call begins to fail and goes on failing), and then a *calm*, in which
//! errors end and peers are willing: they read what there is, and close in the end. Between the steps the loop runs as it
//! would: when the poll has something to tell, or when its sleep is over, and at no other time, so that who is forgotten is
//! not saved by chance.
//!
//! The kernel is Linux's, as far as a loop can tell ([`kernel`]): an edge when bytes, an end or a reset arrive, and when a
//! send buffer that was found full has a third of it free again; events that tell what is so when they are taken, and may
//! be stale by the time they are seen; reads that end in front of urgent data, or where the peer's pieces do; errors that
//! stay. It knows what is true, so that the laws can be checked after every turn:
//!
//! - *Sleep is a function of state*: either nothing can be done or the sleep is zero, and every deadline that follows
//!   from what has happened is at or after its end.
//! - What is echoed is what was read, nobody is closed without a reason, part of an answer is followed by a reset, memory
//!   is bounded by one read, and who must not come in is not let in, while who may is.
//! - The loop does not spin: turns in which nothing gets on are few in each second.
//! - In the calm, whoever waits for something that is possible gets it within a second; in the end nobody is left.
//!
//! The options of the service, and how likely each action is, differ from run to run (swarm testing: A. Groce et al.,
//! ISSTA 2012), so that some runs are all about resets and others have none.
//!
//! # A failure, and how to read it
//!
//! All choices of a run are on a [`tape`](crate::simulation::tape). A seed that breaks a promise is made shorter
//! until nothing can be left out, and told:
//!
//! ```text
//! seed 17: connection 0 has bytes to read, and no edge will come     the promise that was broken
//! options: max connections 12, ...                                   what the service was told to do
//!   1. somebody connects to 0: connection 0, a piece at a time       a step: what the network did
//!       accept at 0: connection 0                                    a system call of the service, and its answer
//!       read 0: would block
//!     turn, then sleeps None                                         a turn of its loop, and for how long it may sleep
//!   2. connection 0 sends 1 (of 1)
//! play it again: &[&[0], &[1], &[2]]                                 the tape, for `STORIES`
//! ```
//!
//! `ECHOLOOP_SEED=17 cargo test simulat` plays a seed again. A story that has found a fault is kept in [`STORIES`].
//!
//! # Torture
//!
//! The same runs, with one call that fails: each call in turn, with each error that its man page lists, once and for as
//! long as the storm lasts. Connections whose own calls failed may end; all other promises hold.

mod kernel;
mod world;

use std::cell::RefCell;
use std::rc::Rc;

use kernel::{Call, Fault, Pattern, Tally};
use rustix::io::Errno;
use world::World;

use crate::simulation::tape::{Failure, Steps, Tape, attempt};
use crate::simulation::{Simulation, endless_seeds, seeds};

/// Stories that have found a fault, as they were told.
const STORIES: &[&[&[u32]]] = &[
    // Two requests that are read in one turn: the second was forgotten, and its connection kept.
    &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[1, 1, 0, 1], &[11, 0, 0, 0, 0, 2], &[11]],
    // At a stop, a read that ended in front of an urgent byte passed for the end of what had arrived: its event had not been
    // seen yet.
    &[
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        &[1],
        &[13],
        &[9, 0, 2],
        &[7, 11, 2],
        &[9, 0, 0, 208],
    ],
];

/// The service in its network, and a call of it that fails.
struct Network<'a> {
    pattern: &'a Rc<Pattern>,
    fault: Option<Fault>,
    /// What was done to it, over all runs.
    total: &'a RefCell<Tally>,
}

impl Simulation for Network<'_> {
    fn play(&self, tape: Tape, told: bool) -> (Result<(), Failure>, Steps, Vec<String>) {
        let mut world = World::new(tape, self.pattern, self.fault, told);
        let result = attempt(|| world.run()).map(|tally| self.total.borrow_mut().add(&tally));
        (result, world.steps(), world.story())
    }
}

fn simulate(seed: u64, pattern: &Rc<Pattern>, fault: Option<Fault>, total: &RefCell<Tally>) {
    let what = fault.map(|fault| format!(", {fault:?}")).unwrap_or_default();
    Network { pattern, fault, total }.simulate(seed, &what);
}

#[test]
fn simulated_networks_find_nothing_lost_and_nobody_stuck() {
    let (pattern, total) = (Rc::new(Pattern::new()), RefCell::default());
    let seeds = seeds(RUNS);
    let all = seeds == (0..RUNS);
    seeds.for_each(|seed| simulate(seed, &pattern, None, &total));
    let total = total.into_inner();
    assert!(!all || total.rare(50).is_empty(), "{:?}: {total:#?}", total.rare(50));
}

/// Runs of the default test: a few seconds in a debug build.
const RUNS: u64 = 1000;

#[test]
fn kept_stories_end_well() {
    Network { pattern: &Rc::new(Pattern::new()), fault: None, total: &RefCell::default() }.play_kept(STORIES);
}

/// A call that fails, of all that there are to choose from.
fn faults() -> impl Iterator<Item = (Call, Errno, bool)> {
    let calls = Call::ALL.into_iter().flat_map(|call| call.errnos().iter().map(move |&errno| (call, errno)));
    calls
        .flat_map(|(call, errno)| [(call, errno, false), (call, errno, true)])
        // A kernel that always says that there is nothing is one where there is nothing.
        .filter(|&(_, errno, for_ever)| errno != Errno::AGAIN || !for_ever)
}

/// Has one call of a seed's run fail, with each error, once and for ever.
fn torture(seed: u64, pattern: &Rc<Pattern>, total: &RefCell<Tally>) {
    let mut calm = World::new(Tape::random(seed), pattern, None, false);
    if attempt(|| calm.run()).is_err() {
        return simulate(seed, pattern, None, total); // it tells why
    }
    let calls = calm.calls();
    for (number, (call, errno, for_ever)) in faults().enumerate() {
        // Which of its calls, differs from error to error and from seed to seed.
        let made = calls[call as usize];
        if made > 0 {
            let first = 1 + seed.wrapping_mul(7919).wrapping_add(number as u64 * 104_729) % made;
            simulate(seed, pattern, Some(Fault { call, errno, first, for_ever }), total);
        }
    }
}

#[test]
fn failing_calls_end_their_own_connection_alone() {
    let (pattern, total) = (Rc::new(Pattern::new()), RefCell::default());
    (0..TORTURES).for_each(|seed| torture(seed, &pattern, &total));
}

const TORTURES: u64 = 4;

#[test]
#[ignore = "runs for as long as it is told"]
fn simulated_networks_for_as_long_as_is_asked() {
    let (pattern, total) = (Rc::new(Pattern::new()), RefCell::default());
    for seed in endless_seeds() {
        simulate(seed, &pattern, None, &total);
        if seed % 100 == 0 {
            torture(seed, &pattern, &total);
        }
    }
    println!("{:#?}", total.into_inner());
}
