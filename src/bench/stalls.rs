//! How long the generator itself stood still: turns of its loop that took long, and waits from which it woke late.
//!
//! While it stands still it neither sends what is due nor sees what comes, so what it measures then is its own. How much
//! of the latencies this can explain is computed from how often, and for how long, it stood still.

use hdrhistogram::Histogram;

use super::clock::{Nanos, seconds};
use super::latency::{Distribution, PERCENTILES, histogram, record};
use super::ledger::LATE;

/// The gaps in one window.
pub(super) struct Stalls {
    gaps: Histogram<u64>,
}

impl Stalls {
    pub fn new() -> Self {
        Stalls { gaps: histogram() }
    }

    /// Notes for how long the loop did not look at its sockets.
    pub fn note(&mut self, gap: Nanos) {
        record(&mut self.gaps, gap, 1);
    }

    /// All gaps, in nanoseconds.
    pub fn gaps(&self) -> &Histogram<u64> {
        &self.gaps
    }

    /// Which of the figures shown of `latency` they can explain: at least half of what is at or beyond the figure may have
    /// waited for the generator, for at least half of the figure. `in_flight` is how many messages can wait at a time in a
    /// closed loop; `None`: messages are due all the time.
    pub fn explain(&self, latency: &Distribution, window: Nanos, in_flight: Option<u64>) -> Vec<String> {
        let all = latency.len() as f64;
        let per_second = all / seconds(window).max(1e-9);
        let explains = |value: u64, share: f64| {
            let least = (value / 2).max(LATE);
            let long = self.gaps.iter_recorded().filter(|cell| cell.value_iterated_to() >= least);
            let waited: f64 = long
                .map(|cell| {
                    // Who waits for at least half of the figure.
                    let each = match in_flight {
                        Some(in_flight) => in_flight as f64,
                        None => per_second * seconds(cell.value_iterated_to().saturating_sub(least)),
                    };
                    cell.count_at_value() as f64 * each
                })
                .sum();
            value > LATE && waited >= (all * share / 2.0).max(0.5)
        };
        let mut explained = Vec::new();
        if all == 0.0 {
            return explained;
        }
        for percentile in PERCENTILES {
            if explains(latency.all().value_at_percentile(percentile), 1.0 - percentile / 100.0) {
                explained.push(format!("p{percentile}"));
            }
        }
        if explains(latency.max(), 0.0) {
            explained.push("max".to_owned());
        }
        explained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_explains_what_waited_for_it() {
        let mut latency = Distribution::new();
        latency.record(100_000, 99_980);
        latency.record(1_000_000_000, 20);
        let mut stalls = Stalls::new();
        (0..1000).for_each(|_| stalls.note(20_000));
        assert_eq!(stalls.explain(&latency, 10_000_000_000, Some(10)), Vec::<String>::new());
        stalls.note(1_000_000_000);
        assert_eq!(stalls.explain(&latency, 10_000_000_000, Some(10)), ["p99.99", "max"]);
    }
}
