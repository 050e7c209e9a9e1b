//! What is aimed at where designs differ: ours against others', in one run.

use crate::measure::Measure;

pub struct Target {
    pub scenario: &'static str,
    pub measure: Measure,
    /// The server that ours is compared with; `None`: the figure itself is bounded.
    pub against: Option<&'static str>,
    /// At least this, where more is better, and at most this elsewhere.
    pub bound: f64,
}

const fn target(scenario: &'static str, measure: Measure, against: &'static str, bound: f64) -> Target {
    Target { scenario, measure, against: Some(against), bound }
}

pub const TARGETS: &[Target] = &[
    target("mixed", Measure::P99, "epoll", 1.0),
    target("mixed", Measure::P99, "tokio", 0.1),
    target("mixed", Measure::Bulk, "tokio", 1.5),
    target("tail", Measure::P999, "epoll", 1.0),
    target("tail", Measure::P999, "tokio", 1.0),
    target("unreading", Measure::Memory, "tokio", 0.5),
    target("sleepers", Measure::Cpu, "epoll", 1.0),
    target("sleepers", Measure::Cpu, "tokio", 1.0),
    target("burst", Measure::AllEchoed, "epoll", 1.0),
    target("burst", Measure::AllEchoed, "tokio", 1.0),
    target("unix", Measure::Rate, "epoll", 1.0),
    target("udp", Measure::Rate, "epoll", 1.0),
    target("udp 1,200 B", Measure::Rate, "epoll", 1.0),
    Target { scenario: "soak", measure: Measure::Growth, against: None, bound: 64.0 * 1024.0 },
];

impl Target {
    /// Whether it is reached: by the median; or, if not, whether the rounds do not even agree on that.
    pub fn verdict(&self, median: f64, least: f64, most: f64) -> &'static str {
        let (reached, in_a_round) = if self.measure.more_is_better() {
            (median >= self.bound, most >= self.bound)
        } else {
            (median <= self.bound, least <= self.bound)
        };
        match (reached, in_a_round) {
            (true, _) => "reached",
            (false, true) => "a tie: reached in some rounds",
            (false, false) => "missed",
        }
    }
}
