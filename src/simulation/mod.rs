//! What all simulations have in common: seeds, of which each decides a run, and stories, which are what failing runs are made
//! into.
//!
//! A default test plays the same few seeds each time. `ECHOLOOP_SEED` plays one again that failed, and the ignored tests go on
//! with others for `ECHOLOOP_SECONDS`.

pub(crate) mod tape;

use std::env;
use std::ops::Range;
use std::time::{Duration, Instant};

use tape::{Failure, Steps, Tape, shrink};

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The seeds of a default test: so many, or the one that is to be played again.
pub(crate) fn seeds(count: u64) -> Range<u64> {
    number("ECHOLOOP_SEED").map_or(0..count, |seed| seed..seed + 1)
}

/// Seeds that differ each time, for as long as is asked: a minute by default.
pub(crate) fn endless_seeds() -> impl Iterator<Item = u64> {
    let length = Duration::from_secs(number("ECHOLOOP_SECONDS").unwrap_or(60));
    let (began, first) = (Instant::now(), fastrand::u64(..u64::MAX / 2));
    (first..).take_while(move |_| began.elapsed() < length)
}

/// A run that is decided by a tape.
pub(crate) trait Simulation {
    /// Plays a tape. Returns how that went, the tape as it was played, and if `told`, what happened.
    fn play(&self, tape: Tape, told: bool) -> (Result<(), Failure>, Steps, Vec<String>);

    /// Plays a seed. One that breaks a promise is made shorter until nothing can be left out, and told.
    ///
    /// # Panics
    ///
    /// If a promise was broken.
    #[track_caller]
    fn simulate(&self, seed: u64, what: &str) {
        let (Err(failure), steps, _) = self.play(Tape::random(seed), false) else { return };
        let fails = |steps: &[Vec<u32>]| {
            self.play(Tape::replay(steps), false).0.is_err_and(|other| other.place == failure.place)
        };
        let steps = shrink(steps, fails);
        panic!("seed {seed}{what}: {}", self.tell(&steps).unwrap_or(failure.message));
    }

    /// How a story fails, what happens in it step by step, and its tape; nothing of one that does not fail.
    fn tell(&self, steps: &[Vec<u32>]) -> Option<String> {
        let (result, _, told) = self.play(Tape::replay(steps), true);
        let Failure { place, message } = result.err()?;
        let tape: Vec<_> = steps.iter().map(|step| format!("&{step:?}")).collect();
        Some(format!("{message} ({place})\n{}\nplay it again: &[{}]", told.join("\n"), tape.join(", ")))
    }

    /// Plays stories that once found a fault.
    ///
    /// # Panics
    ///
    /// If one of them does again.
    #[track_caller]
    fn play_kept(&self, stories: &[&[&[u32]]]) {
        for story in stories {
            let steps: Steps = story.iter().map(|step| step.to_vec()).collect();
            if let Some(told) = self.tell(&steps) {
                panic!("{told}");
            }
        }
    }
}
