//! The lines in which a server reports its counters.

use std::fmt::Write;
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use log::info;

use super::access::Refusals;
use super::fault::FaultCounters;
use crate::count::counted;
use crate::reactor::{CloseReason, Counter, Counters, DatagramCounters, Kind};
use crate::values::show_bytes;

/// What a server has done, from its start to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// What its event loop counted.
    pub counters: Counters,
    /// Connections that were not let in.
    pub refusals: Refusals,
    /// What came and went over UDP, if anything could.
    pub datagrams: Option<(DatagramCounters, Refusals)>,
    /// What was done wrong on request, if anything was to be.
    pub faults: Option<FaultCounters>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "served {}; closed: ", totals(Counters::TABLE, &self.counters))?;
        let closed: Vec<_> = CloseReason::ALL
            .iter()
            .zip(self.counters.closed)
            .map(|((name, _), count)| format!("{} {name}", HumanCount(count)))
            .collect();
        f.write_str(&closed.join(", "))?;
        if self.refusals.total() > 0 {
            write!(f, "; {} refused ({})", HumanCount(self.refusals.total()), self.refusals)?;
        }
        if let Some((counters, refusals)) = &self.datagrams {
            write!(f, "; {}", totals(DatagramCounters::TABLE, counters))?;
            if refusals.total() > 0 {
                write!(f, ", {} not answered ({refusals})", HumanCount(refusals.total()))?;
            }
        }
        if let Some(faults) = &self.faults {
            write!(f, "; on request: {}", totals(FaultCounters::TABLE, faults))?;
        }
        Ok(())
    }
}

/// All counters of a table that are not zero, as a sentence; the first one in any case.
fn totals<T>(table: &[Counter<T>], counters: &T) -> String {
    let told = table.iter().enumerate().filter(|(at, it)| *at == 0 || (it.get)(counters) > 0);
    let told: Vec<_> = told.map(|(_, it)| amount(it, (it.get)(counters))).collect();
    told.join(", ")
}

/// Refusals are logged no more often than this.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);

/// Logs refusals: the first at once, and then rarely enough that a flood of them does not flood the log.
#[derive(Default)]
pub(super) struct RefusalLog {
    told: u64,
    last: Option<Instant>,
}

impl RefusalLog {
    /// How long until the next line, given how many were refused so far; `None` until more are.
    pub fn sleep(&self, total: u64, now: Instant) -> Option<Duration> {
        let due = self.last.map_or(now, |last| last + REFUSALS_EVERY);
        (total > self.told).then(|| due.saturating_duration_since(now))
    }

    /// Logs it, if it is time to; `what` names them.
    pub fn turn(&mut self, what: &str, refusals: &Refusals, now: Instant) {
        let total = refusals.total();
        if self.sleep(total, now) == Some(Duration::ZERO) {
            info!("{what}: {} (in all: {refusals}); -v logs each", HumanCount(total - self.told));
            (self.told, self.last) = (total, Some(now));
        }
    }
}

/// The line that is logged at intervals.
pub(super) struct Stats {
    every: Duration,
    last: Instant,
    before: Summary,
}

impl Stats {
    pub fn new(every: Duration) -> Self {
        Stats { every, last: Instant::now(), before: Summary::default() }
    }

    /// When the next line is due.
    pub fn due(&self) -> Instant {
        self.last + self.every
    }

    /// Logs what has happened since the last line.
    pub fn log(&mut self, now: Instant, summary: Summary) {
        info!("{}", interval(&self.before, &summary, now - self.last));
        self.last = now;
        self.before = summary;
    }
}

/// One line on the time between two states of the counters: what there is, and what happened per second.
fn interval(before: &Summary, after: &Summary, time: Duration) -> String {
    let mut line = format!("{} open", counted(after.counters.live(), "connection"));
    rates(&mut line, Counters::TABLE, &before.counters, &after.counters, time);
    let closed = after.counters.closed_total() - before.counters.closed_total();
    rate(&mut line, "closed", per_second(closed, time), false);
    rate(&mut line, "refused", per_second(after.refusals.total() - before.refusals.total(), time), false);
    if let Some((is, _)) = &after.datagrams {
        let was = before.datagrams.map_or_else(DatagramCounters::default, |(was, _)| was);
        rates(&mut line, DatagramCounters::TABLE, &was, is, time);
    }
    line
}

fn rates<T>(line: &mut String, table: &[Counter<T>], before: &T, after: &T, time: Duration) {
    for counter in table.iter().filter(|counter| counter.kind == Kind::Total) {
        let happened = (counter.get)(after) - (counter.get)(before);
        rate(line, counter.label, per_second(happened, time), counter.is_bytes());
    }
}

/// Adds a rate, if it is more than nothing.
fn rate(line: &mut String, label: &str, per_second: f64, bytes: bool) {
    if per_second > 0.0 {
        let _ = if bytes {
            write!(line, ", {}/s {label}", show_bytes(per_second.round() as u64))
        } else if per_second < 10.0 {
            write!(line, ", {per_second:.1}/s {label}")
        } else {
            write!(line, ", {}/s {label}", HumanCount(per_second.round() as u64))
        };
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// A counter's value and its label. A label that ends in an s is the plural of a noun.
fn amount<T>(counter: &Counter<T>, value: u64) -> String {
    match counter.label.strip_suffix('s') {
        _ if counter.is_bytes() => format!("{} {}", show_bytes(value), counter.label),
        Some(noun) => counted(value, noun).to_string(),
        None => format!("{} {}", HumanCount(value), counter.label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_counted_agrees_with_its_number() {
        for number in [0, 1, 2, 1000] {
            let noun = |noun| counted(number, noun);
            let counters = Counters { opened: number, turns: number, partial_sends: number, ..Counters::default() };
            let datagrams = DatagramCounters { received: number, ..DatagramCounters::default() };
            let faults = FaultCounters { connections: number, ..FaultCounters::default() };
            let datagrams = Some((datagrams, Refusals::default()));
            let summary = Summary { counters, datagrams, faults: Some(faults), ..Summary::default() };
            let mut expected = vec![noun("connection"), noun("datagram"), noun("faulty connection")];
            if number > 0 {
                expected.extend([noun("turn"), noun("partial send")]);
            }
            let text = summary.to_string();
            for expected in expected {
                let all = format!(" {text};").replace(['(', ','], ";");
                assert!(all.contains(&format!("{expected}").replace(',', ";")), "{expected}: {text}");
            }
            let open = interval(&Summary::default(), &summary, Duration::from_secs(1));
            assert!(open.starts_with(&format!("{} open", noun("connection"))), "{open}");
        }
    }

    #[test]
    fn labels_in_s_are_plural_nouns() {
        fn labels<T>(table: &[Counter<T>]) -> Vec<&'static str> {
            table.iter().map(|counter| counter.label).filter(|label| label.ends_with('s')).collect()
        }
        let reactor = ["connections", "partial sends", "would-blocks", "turns", "events", "accept pauses"];
        assert_eq!(labels(Counters::TABLE), reactor);
        assert_eq!(labels(DatagramCounters::TABLE), ["datagrams", "receive errors"]);
        let faults = ["faulty connections", "pieces", "ignored ends", "banners", "freezes"];
        assert_eq!(labels(FaultCounters::TABLE), faults);
    }
}
