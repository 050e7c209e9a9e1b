//! Runs that several processes or machines made of one test, added up into one.
//!
//! The window of the merged run goes from where the first of theirs begins to where the last one ends, by the times that
//! report; what was counted in it is added up, and the rates are those sums divided by its length. So runs that only partly
//! overlapped are not credited with a combined rate that was never reached. Percentiles come from histograms that are added.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;

use super::latency::{Distribution, Latency, histogram};
use super::summary::{Part, digest, timestamp};
use super::{Backend, ErrorCount, ErrorKind, Interval, Run, Settings};
use crate::count::counted;

/// The length of the intervals of the merged timeline, in seconds.
const INTERVAL: f64 = 1.0;

/// The part of the window in which all runs must have been running to go without a warning.
const COMMON: f64 = 0.9;

/// A last interval that is shorter than this is part of the one before, in seconds.
const LEFTOVER: f64 = 0.05;

/// The longest merged run. Beyond that somebody's clock is wrong.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Adds up runs of the same test at the same time. Each comes with what to call it in errors, such as its file.
///
/// # Errors
///
/// If there are none, or they are not of the same test, or one of them is there twice, or they were not measured at the
/// same time.
pub fn merge(inputs: &[(String, Run)], name: Option<&str>) -> anyhow::Result<Run> {
    let Some(((first_label, first), others)) = inputs.split_first() else { bail!("there are no runs to merge") };
    refuse_duplicates(inputs)?;
    for (label, run) in others {
        ensure_same_test((first_label, first), (label, run))?;
    }
    let windows = inputs.iter().map(|(label, run)| Window::of(label, run)).collect::<anyhow::Result<Vec<_>>>()?;
    let (whole, common) = Window::around(&windows)?;

    let names = distinct_names(inputs.iter().map(|(_, run)| run));
    let mut sum = Sum::new(first, &whole);
    for (((_, run), name), window) in inputs.iter().zip(&names).zip(&windows) {
        sum.add(run, name, (window.from - whole.from).as_secs_f64())?;
    }
    sum.run.name = match name {
        Some(name) => name.to_owned(),
        None if names.len() <= 3 => names.join(" + "),
        None => format!("{} and {}", names[0], counted(names.len() - 1, "other")),
    };
    sum.finish(&whole, common)
}

/// The names of runs, those that are alike with a number: "a", "b", "a (2)".
pub(super) fn distinct_names<'a>(runs: impl Iterator<Item = &'a Run>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut distinct = |run: &Run| {
        let numbered = (2..).map(|number| format!("{} ({number})", run.name));
        let mut names = std::iter::once(run.name.clone()).chain(numbered);
        names.find(|name| taken.insert(name.clone())).expect("there is no end of numbers")
    };
    runs.map(&mut distinct).collect()
}

/// Each run counts once, whether it comes by itself or within another.
fn refuse_duplicates(inputs: &[(String, Run)]) -> anyhow::Result<()> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (label, run) in inputs {
        let within = run.parts.iter().map(|part| (part.id.as_str(), part.name.as_str()));
        for (id, name) in within.chain(std::iter::once((run.id.as_str(), run.name.as_str()))) {
            if let Some(other) = seen.insert(id, label) {
                bail!("{name:?} is both in {other} and in {label}: a run counts once");
            }
        }
    }
    Ok(())
}

/// Makes sure that two runs can be added up.
fn ensure_same_test((here, first): (&str, &Run), (there, other): (&str, &Run)) -> anyhow::Result<()> {
    let test = |run: &Run| {
        let Settings { smallest, largest, depth, rate, reconnect, .. } = run.config;
        [
            ("smallest message", smallest.to_string()),
            ("largest message", largest.to_string()),
            ("depth", depth.to_string()),
            ("kind", if run.datagrams.is_some() { "datagrams" } else { "streams" }.to_owned()),
            ("loop", if rate.is_some() || run.service.is_some() { "open" } else { "closed" }.to_owned()),
            ("messages before a reconnect", reconnect.map_or("no limit".to_owned(), |n| n.to_string())),
        ]
    };
    for ((what, one), (_, two)) in test(first).into_iter().zip(test(other)) {
        ensure!(one == two, "{here} and {there} are not the same test: {what}: {one} and {two}");
    }
    ensure!(
        first.search.is_none() && other.search.is_none(),
        "searches for a rate cannot be merged: each of them found a rate of its own"
    );
    Ok(())
}

/// When a run was measured, since the epoch, and how exactly that is known.
struct Window<'a> {
    label: &'a str,
    from: Duration,
    to: Duration,
    exact: bool,
}

impl<'a> Window<'a> {
    fn of(label: &'a str, run: &Run) -> anyhow::Result<Self> {
        let since_epoch = |text: &str| -> anyhow::Result<Duration> {
            let time = humantime::parse_rfc3339(text).with_context(|| format!("{label}: {text:?} is no time"))?;
            Ok(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
        };
        let (from, to) = (since_epoch(&run.measured_from)?, since_epoch(&run.measured_to)?);
        ensure!(from <= to, "{label}: its measured window ends before it begins");
        Ok(Window { label, from, to, exact: run.measured_from.contains('.') })
    }

    /// The window that holds all of these, if all were open at one time, and how long that was.
    fn around(all: &[Window<'a>]) -> anyhow::Result<(Self, Duration)> {
        let last_to_begin = all.iter().max_by_key(|window| window.from).context("there are no runs")?;
        let first_to_end = all.iter().min_by_key(|window| window.to).context("there are no runs")?;
        // Runs of version 1 tell of whole seconds.
        let rough = all.iter().filter(|window| !window.exact).count().min(2);
        let apart = last_to_begin.from.saturating_sub(first_to_end.to);
        ensure!(
            apart <= Duration::from_secs(rough as u64),
            "{} began {:.3} s after {} had ended, so they are not of one test (or the clocks of their machines differ); \
             side by side they can be looked at without --merge",
            last_to_begin.label,
            apart.as_secs_f64(),
            first_to_end.label
        );
        let from = all.iter().map(|window| window.from).min().unwrap_or_default();
        let to = all.iter().map(|window| window.to).max().unwrap_or_default();
        ensure!(to - from <= LONGEST, "the runs are of more than two days");
        let whole = Window { label: "", from, to, exact: rough == 0 };
        Ok((whole, first_to_end.to.saturating_sub(last_to_begin.from)))
    }

    fn seconds(&self) -> f64 {
        (self.to - self.from).as_secs_f64()
    }
}

/// Runs that are being added up.
struct Sum {
    run: Run,
    response: Distribution,
    service: Option<Distribution>,
    connect: Histogram<u64>,
    /// Bytes that came in the window.
    bytes: f64,
    timeline: Vec<Histogram<u64>>,
    errors: BTreeMap<ErrorKind, ErrorCount>,
    /// The response times of each backend, in the order of the run's.
    backends: Vec<Distribution>,
}

/// Adds numbers of runs, fields of the same name.
macro_rules! add {
    ($sum:expr, $other:expr, $($field:ident),+) => { $($sum.$field = $sum.$field.saturating_add($other.$field);)+ };
}

impl Sum {
    /// The first run, with nothing in it yet.
    fn new(first: &Run, whole: &Window<'_>) -> Self {
        let mut run = first.clone();
        run.merged = 0;
        run.interrupted = false;
        run.seconds = whole.seconds();
        run.parts.clear();
        run.addresses.clear();
        run.errors.clear();
        run.mismatches.clear();
        run.backends.clear();
        run.criteria.clear();
        run.messages = Default::default();
        run.outcomes = Default::default();
        run.rate_kept = None;
        run.cut = None;
        run.datagrams = run.datagrams.map(|_| Default::default());
        // Two runs that watched one process would count its time twice.
        run.watched = None;
        run.generator.cpu_seconds = 0.0;
        run.generator.late = 0;
        run.generator.warnings.clear();
        // What is of one process and its own clock is in the runs themselves.
        (run.generator.lateness, run.generator.stalls, run.connections.closing) = (None, None, None);
        run.generator.explains.clear();
        run.connections.never_closed = 0;
        run.connections.still_closing = 0;
        let Settings { connections, idle, connect_rate, rate, messages, sources, address, .. } = &mut run.config;
        (*connections, *idle) = (0, 0);
        (*connect_rate, *rate) = (connect_rate.map(|_| 0.0), rate.map(|_| 0.0));
        *messages = messages.map(|_| 0);
        sources.clear();
        address.clear();
        let connections = &mut run.connections;
        (connections.asked, connections.opened, connections.idle_asked, connections.idle_opened) = (0, 0, 0, 0);
        connections.reopened = 0;
        let intervals = (((run.seconds - LEFTOVER) / INTERVAL).ceil() as u64).max(1);
        run.timeline = (0..intervals)
            .map(|number| {
                let at = number as f64 * INTERVAL;
                let seconds = if number + 1 == intervals { run.seconds - at } else { INTERVAL };
                let response = Latency::from(&histogram());
                Interval { at, seconds, replies: 0, bytes: 0, connections: 0, errors: 0, response }
            })
            .collect();
        Sum {
            response: Distribution::new(),
            service: first.service.as_ref().map(|_| Distribution::new()),
            connect: histogram(),
            bytes: 0.0,
            timeline: run.timeline.iter().map(|_| histogram()).collect(),
            errors: BTreeMap::new(),
            backends: Vec::new(),
            run,
        }
    }

    /// Adds a run whose window begins `shift` seconds after that of the sum.
    fn add(&mut self, other: &Run, name: &str, shift: f64) -> anyhow::Result<()> {
        let run = &mut self.run;
        add!(run, other, merged);
        run.interrupted |= other.interrupted;
        if other.parts.is_empty() {
            run.parts.push(Part {
                id: other.id.clone(),
                name: name.to_owned(),
                host: other.host.name.clone(),
                addresses: other.addresses.clone(),
                measured_from: other.measured_from.clone(),
                measured_to: other.measured_to.clone(),
                rate: other.rate,
                replies: other.messages.replies,
                errors: other.error_count(),
            });
        }
        run.parts.extend_from_slice(&other.parts);
        let earlier = |other: &str, than: &str| {
            let time = |text| humantime::parse_rfc3339(text).ok();
            time(other).zip(time(than)).is_some_and(|(other, than)| other < than)
        };
        if earlier(&other.started, &run.started) {
            run.started.clone_from(&other.started);
        }
        extend_set(&mut run.addresses, &other.addresses);

        let (config, theirs) = (&mut run.config, &other.config);
        add!(config, theirs, connections, idle);
        config.rate = config.rate.zip(theirs.rate).map(|(here, there)| here + there);
        config.connect_rate = config.connect_rate.zip(theirs.connect_rate).map(|(here, there)| here + there);
        config.messages = config.messages.zip(theirs.messages).map(|(here, there)| here.saturating_add(there));
        config.duration = config.duration.zip(theirs.duration).map(|(here, there)| here.max(there));
        config.timeout = config.timeout.max(theirs.timeout);
        let mut addresses: Vec<_> =
            config.address.split(", ").filter(|text| !text.is_empty()).map(str::to_owned).collect();
        extend_set(&mut addresses, &theirs.address.split(", ").map(str::to_owned).collect::<Vec<_>>());
        config.address = addresses.join(", ");
        extend_set(&mut config.sources, &theirs.sources);

        let (connections, theirs) = (&mut run.connections, &other.connections);
        add!(connections, theirs, asked, opened, idle_asked, idle_opened, reopened, never_closed, still_closing);
        connections.opening_seconds = connections.opening_seconds.max(theirs.opening_seconds);

        add!(run.messages, other.messages, replies, bytes, sent, missed, unanswered);
        add!(run.outcomes, other.outcomes, due, answered, answered_late, unanswered, failed);
        let (sum, never_sent) = (&mut run.outcomes.never_sent, &other.outcomes.never_sent);
        add!(sum, never_sent, connection_gone, generator_behind, end_reached);
        run.cut = run.cut.or(other.cut);
        if let (Some(sum), Some(datagrams)) = (&mut run.datagrams, &other.datagrams) {
            add!(sum, datagrams, lost, reordered, duplicates);
        }
        self.bytes += other.bytes_per_second * other.seconds;

        self.response.add(&other.response.distribution()?);
        add(&mut self.connect, &other.connections.connect)?;
        if let (Some(sum), Some(service)) = (&mut self.service, &other.service) {
            sum.add(&service.distribution()?);
        }
        for backend in &other.backends {
            let known = run.backends.iter().position(|known| known.greeting == backend.greeting);
            let at = known.unwrap_or_else(|| {
                let Backend { greeting, response, .. } = backend.clone();
                run.backends.push(Backend { greeting, connections: 0, replies: 0, bytes: 0, unanswered: 0, response });
                self.backends.push(Distribution::new());
                self.backends.len() - 1
            });
            add!(run.backends[at], backend, connections, replies, bytes, unanswered);
            self.backends[at].add(&backend.response.distribution()?);
        }
        for error in &other.errors {
            let sum = self.errors.entry(error.kind).or_insert_with(|| ErrorCount {
                count: 0,
                first: format!("{name}: {}", error.first),
                ..error.clone()
            });
            add!(sum, error, count);
        }
        run.mismatches.extend_from_slice(&other.mismatches);

        run.generator.cpu_seconds += other.generator.cpu_seconds;
        add!(run.generator, other.generator, late);
        let warnings = other.generator.warnings.iter();
        // Of a run that was merged before, they say already where they come from.
        let named = warnings.map(|text| if other.parts.is_empty() { format!("{name}: {text}") } else { text.clone() });
        run.generator.warnings.extend(named);
        if other.watched.is_some() {
            run.generator.warnings.push(format!("{name}: what the process that it watched used is in that run alone"));
        }
        self.add_timeline(other, shift)
    }

    /// Adds a timeline, moved by `shift` seconds. Counts are shared out among the intervals that theirs overlap; a
    /// histogram cannot be, and goes to the one that it overlaps most.
    fn add_timeline(&mut self, other: &Run, shift: f64) -> anyhow::Result<()> {
        let Some(last) = self.timeline.len().checked_sub(1) else { return Ok(()) };
        let number = |at: f64| ((at / INTERVAL).max(0.0) as usize).min(last);
        for interval in &other.timeline {
            let (from, length) = (interval.at + shift, interval.seconds);
            let middle = number(from + length / 2.0);
            add(&mut self.timeline[middle], &interval.response)?;
            let (first, end) = (number(from), number(from + length));
            // What is left of each count, and of the time in which it came.
            let mut left = [interval.replies, interval.bytes, interval.errors];
            for number in first..=end {
                let begin = from.max(number as f64 * INTERVAL);
                let share = if number == end || length <= 0.0 {
                    1.0
                } else {
                    (((number + 1) as f64 * INTERVAL - begin) / (from + length - begin)).clamp(0.0, 1.0)
                };
                let sum = &mut self.run.timeline[number];
                for (left, sum) in left.iter_mut().zip([&mut sum.replies, &mut sum.bytes, &mut sum.errors]) {
                    let part = ((*left as f64 * share).round() as u64).min(*left);
                    *left -= part;
                    *sum = sum.saturating_add(part);
                }
            }
        }
        // Connections are not a flow: at an interval's end there are as many as at the end of theirs that holds it.
        for (number, sum) in self.run.timeline.iter_mut().enumerate() {
            let end = number as f64 * INTERVAL + sum.seconds - shift;
            let holds =
                |interval: &&Interval| interval.at < end && end <= interval.at + interval.seconds + INTERVAL / 2.0;
            let there = other.timeline.iter().rfind(holds).map_or(0, |interval| interval.connections);
            sum.connections = sum.connections.saturating_add(there);
        }
        Ok(())
    }

    fn finish(mut self, whole: &Window<'_>, common: Duration) -> anyhow::Result<Run> {
        let run = &mut self.run;
        let ids: BTreeSet<_> = run.parts.iter().map(|part| part.id.as_str()).collect();
        run.id = digest(ids.into_iter().collect::<String>().as_bytes());
        let time = |since: Duration| SystemTime::UNIX_EPOCH.checked_add(since).and_then(timestamp);
        run.measured_from = time(whole.from).context("the runs are of no time")?;
        run.measured_to = time(whole.to).context("the runs are of no time")?;
        let per_second = |count: f64| if run.seconds > 0.0 { count / run.seconds } else { 0.0 };
        (run.rate, run.bytes_per_second) = (per_second(run.messages.replies as f64), per_second(self.bytes));
        if common.as_secs_f64() < COMMON * run.seconds {
            run.generator.warnings.push(format!(
                "the {} ran together for only {:.2} of {:.2} s: the rate is what came in all of that time, divided by it",
                counted(run.merged, "run"),
                common.as_secs_f64(),
                run.seconds
            ));
        }
        run.response = Latency::from(&self.response);
        run.service = self.service.as_ref().map(Latency::from);
        run.connections.connect = Latency::from(&self.connect);
        for (backend, response) in run.backends.iter_mut().zip(&self.backends) {
            backend.response = Latency::from(response);
        }
        for (interval, histogram) in run.timeline.iter_mut().zip(&self.timeline) {
            interval.response = Latency::from(histogram);
        }
        run.errors = self.errors.into_values().collect();
        Ok(self.run)
    }
}

fn add(sum: &mut Histogram<u64>, latency: &Latency) -> anyhow::Result<()> {
    sum.add(latency.decode()?).map_err(|error| anyhow::anyhow!("a histogram is out of range: {error}"))
}

/// Adds what is not there yet.
fn extend_set(set: &mut Vec<String>, others: &[String]) {
    for other in others {
        if !set.contains(other) {
            set.push(other.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::{latency_of, sample};
    use super::*;

    fn shifted(name: &str, latencies: &[u64], millis: u64) -> Run {
        let mut run = sample(name, latencies);
        let later =
            |text: &str| timestamp(humantime::parse_rfc3339(text).unwrap() + Duration::from_millis(millis)).unwrap();
        (run.measured_from, run.measured_to) = (later(&run.measured_from), later(&run.measured_to));
        run
    }

    fn merge_all(runs: &[Run]) -> anyhow::Result<Run> {
        let inputs: Vec<_> = runs.iter().map(|run| (format!("{}.json", run.name), run.clone())).collect();
        merge(&inputs, None)
    }

    #[test]
    fn merging_adds_histograms_and_counts() {
        let merged = merge_all(&[sample("one", &[1_000_000, 2_000_000]), sample("two", &[9_000_000; 3])]).unwrap();
        assert_eq!(merged.response, latency_of(&[1_000_000, 2_000_000, 9_000_000, 9_000_000, 9_000_000]));
        assert_eq!((merged.merged, merged.messages.replies, merged.seconds), (2, 5, 3.0));
        assert_eq!(merged.rate, 5.0 / 3.0, "what came, by the time in which it came");
        assert_eq!(merged.timeline.len(), 3);
        assert_eq!(merged.timeline[0].response, latency_of(&[1_000_000, 9_000_000]));
        assert_eq!(merged.timeline[2].response, latency_of(&[9_000_000]));
        assert_eq!(merged.connections.connect.count, 2);
        assert_eq!(merged.name, "one + two");
        let connections: Vec<_> = merged.timeline.iter().map(|interval| interval.connections).collect();
        assert_eq!(connections, [2, 2, 1]);
    }

    #[test]
    fn runs_are_aligned_by_their_times() {
        let merged = merge_all(&[shifted("late", &[5_000_000; 4], 2000), sample("early", &[1_000_000; 4])]).unwrap();
        assert_eq!((merged.seconds, merged.rate), (6.0, 8.0 / 6.0));
        assert_eq!(merged.measured_from, "2026-01-01T00:00:02.000000Z");
        assert_eq!(merged.measured_to, "2026-01-01T00:00:08.000000Z");
        let replies: Vec<_> = merged.timeline.iter().map(|interval| interval.replies).collect();
        assert_eq!(replies, [1, 1, 2, 2, 1, 1]);
        assert_eq!(merged.timeline[5].response, latency_of(&[5_000_000]));
        let [warning] = &merged.generator.warnings[..] else { panic!("{:?}", merged.generator.warnings) };
        assert!(warning.contains("2.00 of 6.00 s"), "{warning}");
    }

    #[test]
    fn counts_between_intervals_are_shared_out() {
        let mut late = shifted("late", &[5_000_000; 3], 250);
        late.timeline.iter_mut().for_each(|interval| interval.replies = 100);
        late.messages.replies = 300;
        let merged = merge_all(&[sample("early", &[1_000_000; 3]), late]).unwrap();
        let replies: Vec<_> = merged.timeline.iter().map(|interval| interval.replies).collect();
        assert_eq!(replies, [76, 101, 101, 25]);
        assert_eq!(replies.iter().sum::<u64>(), merged.messages.replies);
        assert_eq!(merged.timeline.iter().map(|interval| interval.response.count).sum::<u64>(), 6);
    }

    #[test]
    fn a_run_counts_once_also_within_another() {
        let [one, two, three] = ["one", "two", "three"].map(|name| sample(name, &[1_000_000]));
        let error = merge_all(&[one.clone(), two.clone(), one.clone()]).unwrap_err().to_string();
        assert_eq!(error, "\"one\" is both in one.json and in one.json: a run counts once");
        let pair = merge_all(&[one.clone(), two]).unwrap();
        let error = merge_all(&[pair.clone(), one]).unwrap_err().to_string();
        assert!(error.contains("\"one\" is both in one + two.json and in one.json"), "{error}");
        assert!(merge_all(&[pair.clone(), pair.clone()]).is_err());
        let all = merge_all(&[pair, three]).unwrap();
        assert_eq!(all.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
        assert_eq!((all.merged, all.messages.replies), (3, 3));
    }

    #[test]
    fn runs_that_never_overlapped_are_not_merged() {
        let error = merge_all(&[shifted("two", &[1], 1500), sample("one", &[1])]).unwrap_err().to_string();
        assert!(error.contains("two.json began 0.500 s after one.json had ended"), "{error}");
        assert!(
            merge_all(&[sample("one", &[1; 3]), shifted("two", &[1; 3], 2000), shifted("three", &[1; 3], 4000)])
                .is_err()
        );
    }

    #[test]
    fn warnings_and_errors_name_their_run() {
        let [mut one, mut two] = ["node", "node"].map(|name| sample(name, &[1_000_000]));
        two.id = "another".to_owned();
        one.generator.warnings.push("slow".to_owned());
        two.generator.warnings.push("slower".to_owned());
        two.errors.push(ErrorCount { kind: ErrorKind::Reset, count: 2, first: "gone".to_owned() });
        let merged = merge_all(&[one, two]).unwrap();
        assert_eq!(merged.generator.warnings, ["node: slow", "node (2): slower"]);
        assert_eq!((merged.errors[0].count, merged.errors[0].first.as_str()), (2, "node (2): gone"));
    }

    #[test]
    fn different_tests_are_not_merged() {
        let mut other = sample("other", &[1]);
        other.config.depth = 2;
        let error = merge_all(&[sample("one", &[1]), other]).unwrap_err().to_string();
        assert!(error.contains("one.json and other.json are not the same test: depth: 1 and 2"), "{error}");
        assert!(merge_all(&[]).is_err());
    }
}
