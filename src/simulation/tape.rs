//! Every choice of a run, so that it can be played again, and made shorter.
//!
//! A tape is a list of steps, and a step a list of numbers: what was chosen in it, in that order. A number that is missing
//! is 0, and 0 is the calmest choice everywhere; so a step can be left out, cut short, or have its numbers made smaller, and
//! what is left is a story still.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use fastrand::Rng;

pub(crate) type Steps = Vec<Vec<u32>>;

/// How often a shorter story is tried before the shortest so far is told.
const ATTEMPTS: usize = 3000;

/// Chooses, and remembers what; or chooses what it remembers.
pub(crate) struct Tape {
    pub steps: Steps,
    /// The step that is being made, and how many of its numbers have been taken.
    step: usize,
    at: usize,
    /// Decides what is not on the tape.
    rng: Option<Rng>,
}

impl Tape {
    pub fn random(seed: u64) -> Self {
        Tape { steps: vec![Vec::new()], step: 0, at: 0, rng: Some(Rng::with_seed(seed)) }
    }

    pub fn replay(steps: &[Vec<u32>]) -> Self {
        Tape { steps: steps.to_vec(), step: 0, at: 0, rng: None }
    }

    /// Goes on to the next step. Returns whether there is one: of a random tape, whether there are fewer than `limit`.
    pub fn advance(&mut self, limit: usize) -> bool {
        self.step += 1;
        self.at = 0;
        if self.rng.is_some() && self.step <= limit {
            self.steps.push(Vec::new());
        }
        self.step < self.steps.len()
    }

    /// From here on everything is calm.
    pub fn end(&mut self) {
        self.step = self.steps.len();
        self.rng = None;
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.choose(|rng| rng.u32(..limit)) % limit
    }

    /// An index into `weights`, as likely as its weight says.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let number = self.choose(|rng| {
            let mut left = rng.u32(..weights.iter().sum::<u32>().max(1));
            weights.iter().take_while(|&&weight| left.checked_sub(weight).inspect(|&it| left = it).is_some()).count()
                as u32
        });
        number as usize % weights.len()
    }

    /// Whether something happens that does so in so many cases of 256.
    pub fn chance(&mut self, of_256: u32) -> bool {
        self.below(256) >= 256 - of_256
    }

    fn choose(&mut self, random: impl FnOnce(&mut Rng) -> u32) -> u32 {
        let Some(step) = self.steps.get_mut(self.step) else { return 0 };
        self.at += 1;
        match (step.get(self.at - 1), &mut self.rng) {
            (Some(&number), _) => number,
            (None, Some(rng)) => {
                step.push(random(rng));
                step[self.at - 1]
            }
            (None, None) => 0,
        }
    }
}

/// How a run ended that broke a promise: which one, and where that is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    pub place: String,
    pub message: String,
}

thread_local! {
    /// A run that may fail is being made by this thread; its last failure.
    static WATCHED: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Runs something that may panic, quietly.
pub(crate) fn attempt<R>(run: impl FnOnce() -> R) -> Result<R, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let watched = WATCHED.with_borrow_mut(|watched| {
                let message = info.payload_as_str().unwrap_or_default().to_owned();
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                watched.as_mut().map(|failure| *failure = Failure { place, message }).is_some()
            });
            if !watched {
                before(info);
            }
        }));
    });
    WATCHED.set(Some(Failure::default()));
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    let failure = WATCHED.take().unwrap_or_default();
    result.map_err(|_| failure)
}

/// A story as short as can be found that `fails` as this one does. The first step, the options, stays.
pub(crate) fn shrink(mut steps: Steps, fails: impl Fn(&[Vec<u32>]) -> bool) -> Steps {
    let mut left = ATTEMPTS;
    let mut attempt = |steps: &mut Steps, shorter: Steps| {
        left = left.saturating_sub(1);
        let better = left > 0 && shorter != *steps && fails(&shorter);
        if better {
            *steps = shorter;
        }
        better
    };
    loop {
        let before = steps.clone();
        let mut size = steps.len() / 2;
        while size > 0 {
            // From the end: what has happened last matters least to what follows.
            let mut end = steps.len();
            while end > 1 {
                let begin = end.saturating_sub(size).max(1);
                let shorter = [&steps[..begin], &steps[end..]].concat();
                attempt(&mut steps, shorter);
                end = begin;
            }
            size /= 2;
        }
        for step in 0..steps.len() {
            for keep in [0, 1, 2, 4, 8] {
                if keep < steps[step].len() {
                    let mut shorter = steps.clone();
                    shorter[step].truncate(keep);
                    attempt(&mut steps, shorter);
                }
            }
            for at in (0..steps[step].len()).rev() {
                let number = steps[step].get(at).copied().unwrap_or(0);
                for smaller in [0, number / 2, number.saturating_sub(1)] {
                    let mut shorter = steps.clone();
                    let Some(place) = shorter[step].get_mut(at).filter(|it| **it > smaller) else { continue };
                    *place = smaller;
                    if attempt(&mut steps, shorter) {
                        break;
                    }
                }
            }
            while steps[step].last() == Some(&0) {
                steps[step].pop();
            }
        }
        if steps == before {
            return steps;
        }
    }
}
