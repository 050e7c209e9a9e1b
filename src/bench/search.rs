//! The search for the highest rate at which a criterion holds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;

use super::criterion::{Criterion, Figures};
use super::driver::{Driver, Outcome, Pace};
use super::latency::show_micros;
use super::ledger::Ledger;
use super::machine::World;
use super::report;
use super::summary::{self, Cut, ErrorKind, Search, Step};
use super::verdict;
use super::{Config, Latency};
use crate::count::counted;
use crate::values::show_number;

/// The rate at which a search begins, unless it is told another.
const FIRST_RATE: f64 = 1000.0;

/// The shortest and the longest step of a search.
const STEP: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Messages whose outcomes must be known before a step is given up as failed.
const MIN_SEEN: u64 = 10;

/// The fewest messages of a step. Three may be missing before a rate counts as not kept, and that must be less than the
/// margin of the search.
const MIN_MESSAGES: u64 = 100;

/// While rates are being lowered: the longest that a step may take to be conclusive, and how far they are lowered.
const MAX_TELLING: Duration = Duration::from_secs(20);
const MAX_DESCENT: f64 = 64.0;

/// The search for the highest rate that holds: doubling until one does not, then bisection. What counts is what two of
/// three tries say, so that neither one hiccup of the machine nor one lucky try decides.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bracket {
    next: f64,
    /// The highest rate that held.
    pub holds: Option<f64>,
    /// The lowest rate that did not.
    pub fails: Option<f64>,
    /// Tries of the next rate that held and that did not.
    tries: (u32, u32),
    /// Where it gives up going down.
    slowest: f64,
    steps: u32,
}

/// How close the two ends of the bracket must come, as a ratio.
const MARGIN: f64 = 1.05;

/// By how much a rate is lowered as long as none has held.
const DESCENT: f64 = 4.0;

/// A bound on the number of steps, for noise may keep it from ending.
const MAX_STEPS: u32 = 60;

impl Bracket {
    /// A search that begins at `rate`, and does not go below `slowest`.
    pub fn new(rate: f64, slowest: f64) -> Self {
        Bracket { next: rate, holds: None, fails: None, tries: (0, 0), slowest, steps: 0 }
    }

    /// The next rate to try, or `None` if the answer is as close as it is to be.
    pub fn next(&self) -> Option<f64> {
        let done = match (self.holds, self.fails) {
            (Some(holds), Some(fails)) => fails <= holds * MARGIN,
            (None, Some(fails)) => fails <= self.slowest,
            _ => false,
        };
        (!done && self.steps < MAX_STEPS).then_some(self.next)
    }

    /// Takes in how the rate of [`next`](Bracket::next) did.
    pub fn judge(&mut self, held: bool) {
        self.steps += 1;
        *if held { &mut self.tries.0 } else { &mut self.tries.1 } += 1;
        match self.tries {
            (2, _) => self.holds = Some(self.next),
            (_, 2) => self.fails = Some(self.next),
            _ => return,
        }
        self.tries = (0, 0);
        self.next = match (self.holds, self.fails) {
            (Some(holds), None) => holds * 2.0,
            (None, Some(fails)) => (fails / DESCENT).max(self.slowest),
            (Some(holds), Some(fails)) => (holds * fails).sqrt(),
            (None, None) => self.next,
        };
    }
}

/// The fewest messages from which a step can tell anything, and how many tell it well.
fn messages_needed(criterion: &Criterion) -> (u64, u64) {
    let (least, good) = criterion.messages_needed();
    (least.max(MIN_MESSAGES), good.max(MIN_MESSAGES))
}

/// The rate at which a search that begins at `first` gives up: far below it, or where a step takes too long to tell
/// anything.
fn slowest(criterion: &Criterion, first: f64) -> f64 {
    let telling = messages_needed(criterion).0 as f64 / MAX_TELLING.as_secs_f64();
    telling.max(first / MAX_DESCENT).min(first)
}

/// How long a step at `rate` takes.
fn step_length(config: &Config, criterion: &Criterion, rate: f64) -> Duration {
    let (least, good) = messages_needed(criterion);
    let time = |messages: u64| Duration::from_secs_f64((messages as f64 / rate).min(1e6));
    match config.duration {
        // As long as was asked for, or longer if nothing could be told from that.
        Some(duration) => duration.max(time(least)),
        None => time(good).clamp(STEP.0, STEP.1),
    }
}

/// Looks for the highest rate at which `criterion` holds. Returns what was measured at it.
pub(super) fn search<W: World>(
    driver: &mut Driver<W>,
    config: &Config,
    criterion: &Criterion,
) -> anyhow::Result<(Outcome, Search)> {
    let first = config.rate.unwrap_or(FIRST_RATE);
    let mut bracket = Bracket::new(first, slowest(criterion, first));
    let mut steps: Vec<Step> = Vec::new();
    let mut best: Option<(bool, Outcome)> = None;
    // Wrong bytes count wherever they were seen.
    let mut wrong = BTreeMap::new();
    let mut ended = None;
    let needed = step_length(config, criterion, first);
    if let Some(asked) = config.duration.filter(|asked| *asked < needed) {
        driver.progress.say(&format!(
            "steps take longer than {}: {criterion} needs {}, which at {first}/s take {}",
            humantime::format_duration(asked),
            counted(messages_needed(criterion).0, "message"),
            show_micros(needed.as_secs_f64() * 1e6)
        ));
    }
    while let Some(rate) = bracket.next() {
        driver.reopen_missing()?;
        if driver.load().open() == 0 && !driver.is_asked_to_end() {
            ended = Some(format!("no connection could be opened any more: {}", driver.first_error()));
            break;
        }
        let hopeless = |ledger: &Ledger| {
            let (beyond, known) = ledger.count_beyond(criterion.nanoseconds());
            known >= MIN_SEEN && criterion.has_failed(beyond, known)
        };
        let pace = Pace {
            rate: Some(rate),
            warm_up: config.warm_up,
            duration: Some(step_length(config, criterion, rate)),
            messages: None,
            enough: Some(&hopeless),
        };
        let mut outcome = driver.stage(&pace)?;
        if driver.is_asked_to_end() {
            outcome.cut = Some(Cut::Interrupted);
            ended = Some("a signal ended it".to_owned());
            best.get_or_insert((false, outcome));
            break;
        }
        let step = judge(criterion, rate, &outcome);
        driver.progress.say(&report::step_line(&step));
        let mismatches = [ErrorKind::Mismatch, ErrorKind::Excess];
        wrong.extend(mismatches.into_iter().filter_map(|kind| Some((kind, outcome.errors.get(&kind)?.clone()))));
        bracket.judge(step.holds);
        // A socket for datagrams is there whether or not its server is, and a connection whether or not it is served.
        let outcomes = outcome.ledger.outcomes;
        if outcomes.due > 0 && outcomes.all_answered() == 0 {
            ended = Some(format!("at {}/s nobody answered any more", show_number(rate)));
        }
        if step.holds || best.as_ref().is_none_or(|(held, _)| !held) {
            best = Some((step.holds, outcome));
        }
        steps.push(step);
        if ended.is_some() {
            break;
        }
    }
    let (_, mut outcome) = best.with_context(|| ended.clone().unwrap_or("no rate was tried".to_owned()))?;
    outcome.errors.extend(wrong);
    let Bracket { holds, fails, .. } = bracket;
    Ok((outcome, Search { criterion: criterion.to_string(), holds_at: holds, fails_at: fails, ended, steps }))
}

/// Whether a rate was kept, and the criterion was shown to hold.
fn judge(criterion: &Criterion, rate: f64, outcome: &Outcome) -> Step {
    let ledger = &outcome.ledger;
    let messages = ledger.messages();
    let (shown, because) = criterion.show(&Figures {
        response: ledger.response(),
        rate: ledger.rate(),
        errors: outcome.errors.values().map(|error| error.count).sum(),
        mismatches: summary::wrong_bytes(outcome.errors.values()),
        missed: messages.missed,
        lost: messages.unanswered,
        connections: 0,
    });
    let kept = verdict::rate(outcome);
    let (holds, because) = match outcome.errors.values().next() {
        Some(error) => (false, format!("{}: {}", error.kind.counted(error.count), error.first)),
        None if kept.as_ref().is_some_and(|kept| !kept.kept) => {
            (false, format!("{because}, and {}", kept.map(|kept| kept.text).unwrap_or_default()))
        }
        None => (shown == Some(true) && outcome.cut.is_none(), because),
    };
    let response = Latency::from(ledger.response());
    Step { rate, reached: ledger.rate(), holds, because, late: ledger.late(), response }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The answer for a server that holds up to `capacity`.
    fn search(start: f64, capacity: f64) -> Bracket {
        let mut bracket = Bracket::new(start, 1.0);
        while let Some(rate) = bracket.next() {
            bracket.judge(rate <= capacity);
        }
        bracket
    }

    #[test]
    fn search_ends_near_capacity_wherever_it_begins() {
        for (start, capacity) in [(1000.0, 123_456.0), (1000.0, 1000.0), (1000.0, 17.0), (100_000.0, 99.0)] {
            let found = search(start, capacity);
            let (holds, fails) = (found.holds.unwrap(), found.fails.unwrap());
            assert!(holds <= capacity && capacity < fails && fails <= holds * MARGIN, "{found:?}");
            assert!(found.steps < MAX_STEPS, "{found:?}");
        }
    }

    #[test]
    fn a_criterion_that_never_holds_is_given_up() {
        let found = search(1000.0, 0.0);
        assert_eq!(found.holds, None);
        assert!(found.steps <= 12, "{found:?}");
    }

    #[test]
    fn one_try_of_three_decides_nothing() {
        for (tries, holds) in [([true, false, false], false), ([false, true, true], true)] {
            let mut bracket = Bracket::new(1000.0, 1.0);
            tries.into_iter().for_each(|held| bracket.judge(held));
            assert_eq!((bracket.holds.is_some(), bracket.fails.is_some()), (holds, !holds));
        }
    }

    proptest! {
        #[test]
        fn any_answers_come_to_an_end(answers in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut bracket = Bracket::new(1000.0, 1.0);
            let mut answers = answers.into_iter();
            while bracket.next().is_some() {
                bracket.judge(answers.next().unwrap_or(false));
            }
            prop_assert!(bracket.steps <= MAX_STEPS);
        }
    }
}
