//! When messages are due: the open loop's schedule, and the search for the highest rate.
//!
//! Both are arithmetic; neither knows a clock or a socket.

use super::client::Nanos;

/// A constant rate from a beginning on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Schedule {
    begin: Nanos,
    /// Nanoseconds from one message to the next.
    interval: f64,
}

impl Schedule {
    /// `rate` messages per second, the first one at `begin`.
    pub fn new(begin: Nanos, rate: f64) -> Self {
        Schedule { begin, interval: 1e9 / rate }
    }

    /// When a message is due, by its number. Computed from the beginning each time, so that nothing adds up.
    pub fn due(&self, number: u64) -> Nanos {
        self.begin.saturating_add((number as f64 * self.interval) as Nanos)
    }
}

/// The search for the highest rate that holds: doubling until one does not, then bisection.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bracket {
    next: f64,
    /// The highest rate that held.
    pub holds: Option<f64>,
    /// The lowest rate that did not, twice.
    pub fails: Option<f64>,
    failed_once: bool,
    steps: u32,
}

/// How close the two ends of the bracket must come, as a ratio.
const MARGIN: f64 = 1.05;

/// Where a search gives up going down.
const SLOWEST: f64 = 1.0;

/// A bound on the number of steps, for noise may keep it from ending.
const STEPS: u32 = 60;

impl Bracket {
    /// A search that begins at `rate`.
    pub fn new(rate: f64) -> Self {
        Bracket { next: rate, holds: None, fails: None, failed_once: false, steps: 0 }
    }

    /// The next rate to try, or `None` if the answer is as close as it is to be.
    pub fn next(&self) -> Option<f64> {
        let done = match (self.holds, self.fails) {
            (Some(holds), Some(fails)) => fails <= holds * MARGIN,
            (None, Some(fails)) => fails <= SLOWEST,
            _ => false,
        };
        (!done && self.steps < STEPS).then_some(self.next)
    }

    /// Takes in how the rate of [`next`](Bracket::next) did. A rate that did not hold is tried once more before it
    /// counts, for one hiccup of the machine should not decide.
    pub fn judge(&mut self, held: bool) {
        self.steps += 1;
        if held {
            self.holds = Some(self.next);
        } else if !std::mem::replace(&mut self.failed_once, true) {
            return;
        } else {
            self.fails = Some(self.next);
        }
        self.failed_once = false;
        self.next = match (self.holds, self.fails) {
            (Some(holds), None) => holds * 2.0,
            (None, Some(fails)) => fails / 2.0,
            (Some(holds), Some(fails)) => (holds * fails).sqrt(),
            (None, None) => self.next,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_keeps_its_rate_for_hours() {
        let schedule = Schedule::new(1000, 333_333.0);
        assert_eq!(schedule.due(0), 1000);
        let (hour, messages) = (3_600_000_000_000, 333_333 * 3600);
        assert!(schedule.due(messages).abs_diff(1000 + hour) <= 1000);
        assert!((1..100_000).all(|number| (3000..=3001).contains(&(schedule.due(number) - schedule.due(number - 1)))));
    }

    /// The answer for a server that holds up to `capacity`.
    fn search(start: f64, capacity: f64) -> Bracket {
        let mut bracket = Bracket::new(start);
        while let Some(rate) = bracket.next() {
            bracket.judge(rate <= capacity);
        }
        bracket
    }

    #[test]
    fn the_search_ends_close_to_the_capacity_wherever_it_begins() {
        for (start, capacity) in [(1000.0, 123_456.0), (1000.0, 1000.0), (1000.0, 17.0), (100_000.0, 99.0)] {
            let Bracket { holds, fails, .. } = search(start, capacity);
            let (holds, fails) = (holds.unwrap(), fails.unwrap());
            assert!(holds <= capacity && capacity < fails && fails <= holds * MARGIN, "{holds} {capacity} {fails}");
        }
    }

    #[test]
    fn a_search_where_nothing_holds_ends() {
        let bracket = search(1000.0, 0.0);
        assert_eq!(bracket.holds, None);
        assert!(bracket.fails.unwrap() <= SLOWEST);
    }

    #[test]
    fn one_failure_is_tried_again() {
        let mut bracket = Bracket::new(100.0);
        bracket.judge(false);
        assert_eq!(bracket.next(), Some(100.0));
        bracket.judge(true);
        assert_eq!((bracket.holds, bracket.fails, bracket.next()), (Some(100.0), None, Some(200.0)));
    }
}
