//! When messages are due: the open loop's schedule.

use super::clock::Nanos;

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

    /// How many messages are due before `time`.
    pub fn count_before(&self, time: Nanos) -> u64 {
        let Some(passed) = time.checked_sub(self.begin) else { return 0 };
        let mut count = (passed as f64 / self.interval) as u64;
        // The division is not exact.
        while count > 0 && self.due(count - 1) >= time {
            count -= 1;
        }
        while self.due(count) < time {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_schedule_keeps_its_rate_for_hours() {
        let schedule = Schedule::new(1000, 333_333.0);
        assert_eq!(schedule.due(0), 1000);
        let (hour, messages) = (3_600_000_000_000, 333_333 * 3600);
        assert!(schedule.due(messages).abs_diff(1000 + hour) <= 1000);
        assert!((1..100_000).all(|number| (3000..=3001).contains(&(schedule.due(number) - schedule.due(number - 1)))));
    }

    proptest! {
        #[test]
        fn counting_and_due_times_agree(
            rate in prop_oneof![0.001f64..10.0, 10.0f64..1e9],
            begin in 0u64..10_000_000_000,
            passed in 0u64..100_000_000_000,
        ) {
            let schedule = Schedule::new(begin, rate);
            let count = schedule.count_before(begin + passed);
            prop_assert!(count == 0 || schedule.due(count - 1) < begin + passed);
            prop_assert!(schedule.due(count) >= begin + passed);
            prop_assert_eq!(schedule.count_before(begin.saturating_sub(1)), 0);
        }
    }
}
