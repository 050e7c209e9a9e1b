//! The account of every message that was due in the measured window.
//!
//! A message belongs to the *window* if it was due in it, and has exactly one outcome (`Outcome`). What a run reports, its
//! rate, its percentiles, what was missed or lost, its verdict and its exit code, is derived from these outcomes and from
//! nothing else. The window ends on time, however late the loop notices: messages belong to it by when they were
//! due, and not by when they were looked at.

use hdrhistogram::Histogram;

use super::clock::{Nanos, seconds};
use super::latency::{Distribution, Latency, histogram, record};
use super::summary::{Interval, Messages, NeverSent, Outcomes};

/// How much later than due a message must leave, though it could have been sent, to count as late.
pub(super) const LATE: Nanos = 1_000_000;

/// The length of the timeline's intervals.
const INTERVAL: Nanos = 1_000_000_000;

/// Which backend a connection leads to, by its number among those that have greeted.
pub(super) type BackendNumber = u32;

/// No backend is known: none is asked for (`--by-greeting`), or it has not greeted.
pub(super) const UNKNOWN: BackendNumber = BackendNumber::MAX;

/// What became of a message that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was sent, and no answer came within the time that is waited.
    Unanswered,
    /// It was sent, and its connection was lost, or brought something else than the answer.
    Failed,
    /// It was never sent, for there was no connection to send it on.
    ConnectionGone,
    /// It was never sent, though its connection was free: the generator did not get to it.
    GeneratorBehind,
    /// It was never sent: its connection took nothing more until the end.
    EndReached,
}

/// The outcomes of all messages of one window, and what is known of those that were answered.
pub(super) struct Ledger {
    from: Nanos,
    /// When it ends, or has ended.
    to: Nanos,
    timeout: Nanos,
    pub outcomes: Outcomes,
    /// Bytes of messages that were answered.
    bytes: u64,
    /// Messages that were answered before the window's end.
    in_window: u64,
    /// When the first and the last answer came.
    answers: Option<(Nanos, Nanos)>,
    /// From when messages were due to their answers.
    response: Distribution,
    /// From when messages were sent to their answers; `None` in a closed loop, where it is the same.
    service: Option<Distribution>,
    /// How long after they were due messages left whose connections were free; `None` in a closed loop.
    lateness: Option<Histogram<u64>>,
    /// Those that left more than [`LATE`] after they were due.
    late: u64,
    /// Datagrams that came after one that was sent later.
    pub reordered: u64,
    /// Datagrams that came again, or after they were given up.
    pub duplicates: u64,
    /// The part of each backend in it; empty unless they are told apart.
    by_backend: Vec<Tally>,
    timeline: Timeline,
}

/// One backend's part of the account.
pub(super) struct Tally {
    pub replies: u64,
    pub bytes: u64,
    /// Messages that were sent to it and not answered, or whose connection failed.
    pub unanswered: u64,
    pub response: Distribution,
}

impl Tally {
    /// That of a backend that was sent nothing.
    pub fn new() -> Self {
        Tally { replies: 0, bytes: 0, unanswered: 0, response: Distribution::new() }
    }
}

/// The window second by second.
struct Timeline {
    done: Vec<Interval>,
    /// Response times in the interval that runs.
    current: Histogram<u64>,
    began: Nanos,
    replies: u64,
    bytes: u64,
    errors_before: u64,
}

impl Ledger {
    /// Begins an account of what is due from `from` on, and before `to` if that is known. `errors` have been counted before.
    pub fn open(from: Nanos, to: Option<Nanos>, open_loop: bool, timeout: Nanos, errors: u64) -> Self {
        Ledger {
            from,
            to: to.unwrap_or(Nanos::MAX),
            timeout,
            outcomes: Outcomes::default(),
            bytes: 0,
            in_window: 0,
            answers: None,
            response: Distribution::new(),
            service: open_loop.then(Distribution::new),
            lateness: open_loop.then(histogram),
            late: 0,
            reordered: 0,
            duplicates: 0,
            by_backend: Vec::new(),
            timeline: Timeline {
                done: Vec::new(),
                current: histogram(),
                began: from,
                replies: 0,
                bytes: 0,
                errors_before: errors,
            },
        }
    }

    /// Whether a message that is due then is of the window.
    pub fn covers(&self, due: Nanos) -> bool {
        (self.from..self.to).contains(&due)
    }

    /// When the window began.
    pub fn from(&self) -> Nanos {
        self.from
    }

    /// When it ended, or will.
    pub fn to(&self) -> Nanos {
        self.to
    }

    /// The length of the window in seconds.
    pub fn seconds(&self) -> f64 {
        seconds(self.to.saturating_sub(self.from))
    }

    /// Ends the window after `now`, if it did not end before.
    pub fn close(&mut self, now: Nanos) {
        self.to = self.to.min(now.saturating_add(1));
    }

    /// Notes messages that are due in the window.
    pub fn due(&mut self, count: u64) {
        self.outcomes.due += count;
    }

    /// Messages that have no outcome yet.
    pub fn outstanding(&self) -> u64 {
        self.outcomes.due - self.outcomes.sum()
    }

    /// Notes answers that came whole at `now`, to messages of `bytes` in all that were due and sent at the same times, and to
    /// the same backend.
    pub fn answered(&mut self, count: u64, bytes: u64, due: Nanos, sent: Nanos, now: Nanos, backend: BackendNumber) {
        if !self.covers(due) {
            return;
        }
        let response = now.saturating_sub(due);
        let late = response > self.timeout;
        *if late { &mut self.outcomes.answered_late } else { &mut self.outcomes.answered } += count;
        self.bytes += bytes;
        self.answers = Some((self.answers.map_or(now, |(first, _)| first), now));
        if let Some(service) = &mut self.service {
            service.record(now.saturating_sub(sent), count);
        }
        record(&mut self.timeline.current, response, count);
        if backend != UNKNOWN {
            let tally = self.tally(backend);
            tally.replies += count;
            tally.bytes += bytes;
            tally.response.record(response, count);
        }
        if now < self.to || self.to == Nanos::MAX {
            self.in_window += count;
            self.timeline.replies += count;
            self.timeline.bytes += bytes;
        }
    }

    /// Notes messages that were due then and were not answered, which is known at `now`. Returns how many of them are of
    /// the window.
    pub fn lost(
        &mut self,
        count: u64,
        due: Nanos,
        sent: Option<Nanos>,
        now: Nanos,
        outcome: Outcome,
        backend: BackendNumber,
    ) -> u64 {
        if !self.covers(due) {
            return 0;
        }
        let Outcomes { unanswered, failed, never_sent, .. } = &mut self.outcomes;
        *match outcome {
            Outcome::Unanswered => unanswered,
            Outcome::Failed => failed,
            Outcome::ConnectionGone => &mut never_sent.connection_gone,
            Outcome::GeneratorBehind => &mut never_sent.generator_behind,
            Outcome::EndReached => &mut never_sent.end_reached,
        } += count;
        self.response.record_bound(now.saturating_sub(due), count);
        if let (Some(service), Some(sent)) = (&mut self.service, sent) {
            service.record_bound(now.saturating_sub(sent), count);
        }
        if backend != UNKNOWN {
            let tally = self.tally(backend);
            tally.unanswered += count;
            tally.response.record_bound(now.saturating_sub(due), count);
        }
        count
    }

    /// A backend's part of the account.
    #[cold]
    fn tally(&mut self, backend: BackendNumber) -> &mut Tally {
        let number = backend as usize;
        while self.by_backend.len() <= number {
            self.by_backend.push(Tally::new());
        }
        &mut self.by_backend[number]
    }

    /// What came of the messages to one backend, if there were any.
    pub fn of_backend(&self, backend: BackendNumber) -> Option<&Tally> {
        self.by_backend.get(backend as usize)
    }

    /// Notes that a message is sent at `now` that was due then, with nothing in its way but the generator itself.
    pub fn left(&mut self, due: Nanos, now: Nanos) {
        if self.covers(due)
            && let Some(lateness) = &mut self.lateness
        {
            let late = now.saturating_sub(due);
            record(lateness, late, 1);
            self.late += u64::from(late > LATE);
        }
    }

    /// How many of the messages that have been answered, or given up, took longer than `nanoseconds`; and how many there are.
    pub fn count_beyond(&self, nanoseconds: u64) -> (u64, u64) {
        let current = &self.timeline.current;
        let beyond = current.len() - current.count_between(0, nanoseconds);
        (self.response.count_beyond(nanoseconds) + beyond, self.response.len() + current.len())
    }

    /// When the interval that runs is to end.
    pub fn next_interval(&self) -> Option<Nanos> {
        Some(self.timeline.began.saturating_add(INTERVAL)).filter(|end| *end < self.to)
    }

    /// Ends the intervals that are over at `now`.
    pub fn advance(&mut self, now: Nanos, connections: u64, errors: u64) {
        while let Some(end) = self.next_interval().filter(|end| *end <= now) {
            self.end_interval(end, connections, errors);
        }
    }

    /// Ends the timeline with the window.
    pub fn finish(&mut self, connections: u64, errors: u64) {
        self.advance(self.to, connections, errors);
        if self.to > self.timeline.began || !self.timeline.current.is_empty() {
            self.end_interval(self.to, connections, errors);
        }
    }

    fn end_interval(&mut self, end: Nanos, connections: u64, errors: u64) {
        let timeline = &mut self.timeline;
        self.response.add_histogram(&timeline.current);
        timeline.done.push(Interval {
            at: seconds(timeline.began - self.from),
            seconds: seconds(end - timeline.began),
            replies: timeline.replies,
            bytes: timeline.bytes,
            connections,
            errors: errors - timeline.errors_before,
            response: Latency::from(&timeline.current),
        });
        timeline.current.reset();
        timeline.began = end;
        (timeline.replies, timeline.bytes, timeline.errors_before) = (0, 0, errors);
    }

    /// The response times of the interval that runs.
    pub fn current(&self) -> &Histogram<u64> {
        &self.timeline.current
    }

    /// The response times of all messages that have an outcome, once the timeline is finished.
    pub fn response(&self) -> &Distribution {
        &self.response
    }

    pub fn service(&self) -> Option<&Distribution> {
        self.service.as_ref()
    }

    pub fn lateness(&self) -> Option<&Histogram<u64>> {
        self.lateness.as_ref()
    }

    /// Messages that left late, with nothing in their way but the generator itself.
    pub fn late(&self) -> u64 {
        self.late
    }

    pub fn take_timeline(&mut self) -> Vec<Interval> {
        std::mem::take(&mut self.timeline.done)
    }

    /// Answers per second. Those that came before the window's end, divided by its length; or all of them, divided by the
    /// time in which they came, if that is more: answers that are on their way at the window's end are of it too, but a
    /// server that goes on answering long after it is not as fast as if it had been in time.
    pub fn rate(&self) -> f64 {
        let window = self.to.saturating_sub(self.from);
        if window == 0 {
            return 0.0;
        }
        let took = self.answers.map_or(window, |(first, last)| window.max(last - first));
        let within = self.in_window as f64 / seconds(window);
        within.max(self.outcomes.all_answered() as f64 / seconds(took))
    }

    /// The rate at which the messages of a schedule were answered that were due within `length` seconds.
    pub fn rate_of_schedule(&self, length: f64) -> f64 {
        let took = self.answers.map_or(length, |(first, last)| length.max(seconds(last - first)));
        self.rate().max(self.outcomes.all_answered() as f64 / took.max(1e-9))
    }

    /// Bytes of answers per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.rate() * self.bytes as f64 / self.outcomes.all_answered().max(1) as f64
    }

    /// The same account in the words of version 1.
    pub fn messages(&self) -> Messages {
        let Outcomes { due, answered, answered_late, unanswered, failed, never_sent } = self.outcomes;
        Messages {
            replies: answered + answered_late,
            bytes: self.bytes,
            sent: due - never_sent.sum(),
            missed: never_sent.sum(),
            unanswered: unanswered + failed,
        }
    }
}

impl Outcomes {
    /// All messages that have one.
    pub fn sum(&self) -> u64 {
        let Outcomes { due: _, answered, answered_late, unanswered, failed, never_sent } = self;
        // Files can hold any numbers.
        [*answered, *answered_late, *unanswered, *failed, never_sent.sum()].into_iter().fold(0, u64::saturating_add)
    }

    /// Messages that were answered, in time or late.
    pub fn all_answered(&self) -> u64 {
        self.answered + self.answered_late
    }
}

impl NeverSent {
    /// Messages that were never sent, for whatever reason.
    pub fn sum(&self) -> u64 {
        self.connection_gone.saturating_add(self.generator_behind).saturating_add(self.end_reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OUTCOMES: [Outcome; 5] =
        [Outcome::Unanswered, Outcome::Failed, Outcome::ConnectionGone, Outcome::GeneratorBehind, Outcome::EndReached];

    proptest! {
        #[test]
        fn outcomes_add_up_to_what_was_due(
            messages in prop::collection::vec((0u64..3_000, 0usize..7, 0u64..2_000, 0u32..3), 0..100),
        ) {
            let (from, to, timeout) = (500, 2_000, 1_000);
            let mut ledger = Ledger::open(from, Some(to), true, timeout, 0);
            let of_window = messages.iter().filter(|(due, ..)| (from..to).contains(due));
            ledger.due(of_window.clone().count() as u64);
            for &(due, outcome, took, backend) in &messages {
                match OUTCOMES.get(outcome) {
                    Some(&outcome) => _ = ledger.lost(1, due, None, due + took, outcome, backend),
                    None => ledger.answered(1, 64, due, due, due + took, backend),
                }
            }
            ledger.finish(1, 0);
            prop_assert_eq!(ledger.outstanding(), 0);
            prop_assert_eq!(ledger.response().len(), ledger.outcomes.due);
            let late = of_window.filter(|(_, outcome, took, _)| *outcome >= OUTCOMES.len() && *took > timeout).count();
            prop_assert_eq!(ledger.outcomes.answered_late, late as u64);
            let messages = ledger.messages();
            prop_assert_eq!(messages.sent + messages.missed, ledger.outcomes.due);
            prop_assert_eq!(messages.sent, messages.replies + messages.unanswered);
            let tallies: Vec<_> = (0..3).filter_map(|backend| ledger.of_backend(backend)).collect();
            let sum = |part: fn(&Tally) -> u64| tallies.iter().map(|tally| part(tally)).sum::<u64>();
            prop_assert_eq!(sum(|tally| tally.replies), messages.replies);
            prop_assert_eq!(sum(|tally| tally.bytes), messages.bytes);
            prop_assert_eq!(sum(|tally| tally.response.len()), ledger.response().len());
            prop_assert_eq!(sum(|tally| tally.unanswered), ledger.outcomes.due - messages.replies);
        }
    }

    /// The rate of a server that answers one message each `each`, from `first` on, while one is due each millisecond of a
    /// second.
    fn rate(first: Nanos, each: Nanos) -> f64 {
        let mut ledger = Ledger::open(0, Some(1_000_000_000), true, Nanos::MAX / 4, 0);
        ledger.due(1000);
        for number in 0..1000 {
            let due = number * 1_000_000;
            ledger.answered(1, 1, due, due, first + number * each, UNKNOWN);
        }
        ledger.rate()
    }

    #[test]
    fn a_rate_is_of_the_time_it_took() {
        assert!((rate(1_000, 1_000_000) - 1000.0).abs() < 2.0, "as fast as they are due");
        assert!((rate(800_000_000, 1_000_000) - 1000.0).abs() < 2.0, "the same, each 800 ms later");
        assert!((rate(2_500_000, 2_500_000) - 400.0).abs() < 2.0, "slower than they are due");
    }
}
