//! What a run came to, as it is written to a file, read back, merged and compared.
//!
//! The types here are the schema: `echoloop report --schema` prints it from them. They hold plain numbers in the units
//! that their names end in, and do not know how they were measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::latency::Latency;
use super::payload::Mismatch;

/// What the `schema` field says.
const SCHEMA: &str = "echoloop-bench";

/// What the `version` field says. It changes when a reader of older files would misunderstand newer ones.
const VERSION: u32 = 1;

/// A run of `echoloop bench`, or several that were merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Always "echoloop-bench".
    pub schema: String,
    /// The version of this schema: 1.
    pub version: u32,
    /// The version of echoloop that made the run.
    pub echoloop: String,
    /// What its user called the run.
    pub name: String,
    /// When it began, UTC, RFC 3339.
    pub started: String,
    /// How many runs, each of a process of its own, are in it.
    pub merged: u64,
    /// Whether it was ended before its time, by a signal.
    pub interrupted: bool,
    /// What was asked for.
    pub config: Settings,
    /// The machine that made the load.
    pub host: Host,
    /// The connections that carried messages, and those that were held idle.
    pub connections: Connections,
    /// The length of the measured window, without the warm-up.
    pub seconds: f64,
    /// Replies per second of the measured window.
    pub rate: f64,
    /// Bytes that came back per second of the measured window.
    pub bytes_per_second: f64,
    /// The messages of the measured window.
    pub messages: Messages,
    /// From when a message was due to its whole reply. In a closed loop it is due when it is sent.
    pub response: Latency,
    /// From when a message was sent to its whole reply. Null in a closed loop, where it is the same.
    pub service: Option<Latency>,
    /// What became of datagrams. Null over streams, which lose nothing.
    #[serde(default)]
    pub datagrams: Option<Datagrams>,
    /// The measured window in intervals of a second.
    pub timeline: Vec<Interval>,
    /// What went wrong, by kind, in the whole run.
    pub errors: Vec<ErrorCount>,
    /// The first of the places where wrong bytes came back.
    pub mismatches: Vec<Mismatch>,
    /// What the load generator itself used.
    pub generator: Generator,
    /// What the watched process used, if one was.
    pub watched: Option<Watched>,
    /// How the highest rate was found, if one was looked for.
    pub search: Option<Search>,
}

/// What was asked for. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// Whom the load was for.
    pub address: String,
    /// Connections that carry messages.
    pub connections: u64,
    /// Connections that are held open and silent.
    pub idle: u64,
    /// Connections opened per second; null: as fast as it goes.
    pub connect_rate: Option<f64>,
    /// The size of the smallest message in bytes.
    pub smallest: u64,
    /// The size of the largest message in bytes; sizes are uniform between the two.
    pub largest: u64,
    /// Messages in flight per connection, in a closed loop.
    pub depth: u64,
    /// Messages per second over all connections, in an open loop; null: a closed loop.
    pub rate: Option<f64>,
    /// The longest that the measured window may be; null: until the messages have been sent.
    pub duration: Option<f64>,
    /// The most messages that may be sent in the measured window.
    pub messages: Option<u64>,
    /// How long there was load before the measured window.
    pub warm_up: f64,
    /// After so many messages a connection was closed, and opened again.
    pub reconnect: Option<u64>,
    /// The local addresses that connections were made from; empty: the system's choice.
    pub sources: Vec<String>,
    /// After so long without a reply, a message was given up.
    pub timeout: f64,
    /// What sizes and bytes were made from.
    pub seed: u64,
    /// How long the generator spun before it slept.
    pub busy_poll: f64,
}

/// The machine that made the load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// The operating system and its version.
    pub system: String,
    /// The processor's architecture.
    pub architecture: String,
    /// Processors that the generator could run on.
    pub processors: u64,
    /// The limit on open files; null: none.
    pub open_files: Option<u64>,
}

/// Connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Connections {
    /// Connections that were to carry messages.
    pub asked: u64,
    /// Those of them that could be opened.
    pub opened: u64,
    /// Connections that were to be held idle.
    pub idle_asked: u64,
    /// Those of them that could be opened.
    pub idle_opened: u64,
    /// How long it took to open all of these.
    pub opening_seconds: f64,
    /// Connections that were opened after that, in place of others.
    pub reopened: u64,
    /// From the beginning of connecting to when it was seen to be done.
    pub connect: Latency,
}

/// Messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Messages {
    /// Messages whose reply came whole within the measured window, and right.
    pub replies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that were sent in the measured window.
    pub sent: u64,
    /// Messages that were due in the measured window and could not be sent by its end.
    pub missed: u64,
    /// Messages that were sent in the measured window and never answered.
    pub unanswered: u64,
}

/// What became of the datagrams of the measured window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Datagrams {
    /// Datagrams that did not come back in time.
    pub lost: u64,
    /// Datagrams that came back after one that was sent later.
    pub reordered: u64,
    /// Datagrams that came back again, or after they were given up.
    pub duplicates: u64,
}

/// A second of the measured window; the last one may be shorter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// When it began, in seconds from the beginning of the window.
    pub at: f64,
    /// Its length.
    pub seconds: f64,
    /// Replies that came in it.
    pub replies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Connections that carried messages at its end.
    pub connections: u64,
    /// Errors in it.
    pub errors: u64,
    /// Response times of the replies that came in it; those that came after the window are in the last one.
    pub response: Latency,
}

/// How often something went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorCount {
    /// What.
    pub kind: ErrorKind,
    /// How often.
    pub count: u64,
    /// The first one, in words.
    pub first: String,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A connection could not be opened, because nobody listens.
    Refused,
    /// A connection could not be opened in time.
    ConnectTimeout,
    /// A connection could not be opened for another reason.
    ConnectFailed,
    /// The server reset a connection.
    Reset,
    /// The server closed a connection before its time.
    ClosedEarly,
    /// A reply did not come in time.
    ReplyTimeout,
    /// Other bytes came back than had been sent.
    Mismatch,
    /// More bytes came back than had been sent.
    Excess,
    /// A connection failed for another reason.
    Failed,
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ErrorKind::Refused => "connections refused",
            ErrorKind::ConnectTimeout => "connects timed out",
            ErrorKind::ConnectFailed => "connects failed",
            ErrorKind::Reset => "connections reset",
            ErrorKind::ClosedEarly => "connections closed early",
            ErrorKind::ReplyTimeout => "replies timed out",
            ErrorKind::Mismatch => "wrong bytes",
            ErrorKind::Excess => "replies to nothing",
            ErrorKind::Failed => "connections failed",
        })
    }
}

/// What the load generator itself used in the measured window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generator {
    /// Processor time.
    pub cpu_seconds: f64,
    /// Messages that it sent more than a millisecond after they were due, though their connection was free. Only an
    /// open loop has any.
    pub late: u64,
    /// Where the generator, and not the server, may have been the limit.
    pub warnings: Vec<String>,
}

/// What the watched process used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Watched {
    /// Its number.
    pub pid: i32,
    /// Processor time in the measured window.
    pub cpu_seconds: f64,
    /// The same, for each reply, in microseconds.
    pub cpu_us_per_message: f64,
    /// Resident memory before the first connection, in bytes.
    pub resident_before: u64,
    /// Resident memory with all connections open and before the first message, in bytes.
    pub resident_connected: u64,
    /// The most resident memory that was seen, in bytes.
    pub resident_peak: u64,
    /// The growth of resident memory for each connection, from none to all of them open, in bytes.
    pub resident_per_connection: f64,
}

/// How the highest rate was looked for at which a criterion holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// The criterion.
    pub criterion: String,
    /// The highest rate at which it was seen to hold; null if it held at none.
    pub holds_at: Option<f64>,
    /// The lowest rate at which it was seen not to hold; null if it held at all.
    pub fails_at: Option<f64>,
    /// What was tried, in order.
    pub steps: Vec<Step>,
}

/// One rate that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// The rate that was asked for, in messages per second.
    pub rate: f64,
    /// The rate that was reached.
    pub reached: f64,
    /// Whether the criterion held, everything was sent, and nothing went wrong.
    pub holds: bool,
    /// What it was judged by.
    pub because: String,
    /// Messages that the generator sent more than a millisecond after they were due, though their connection was free.
    pub late: u64,
    /// Response times.
    pub response: Latency,
}

impl Run {
    /// The fields that say what kind of file this is.
    pub(super) fn marks() -> (String, u32, String) {
        (SCHEMA.to_owned(), VERSION, env!("CARGO_PKG_VERSION").to_owned())
    }

    /// Everything that went wrong.
    pub fn error_count(&self) -> u64 {
        self.errors.iter().map(|error| error.count).sum()
    }

    /// The places where wrong bytes came back.
    pub fn mismatch_count(&self) -> u64 {
        wrong_bytes(self.errors.iter())
    }

    /// Whether every connection that was asked for was opened, and every byte that came back was right.
    pub fn is_sound(&self) -> bool {
        let Connections { asked, opened, idle_asked, idle_opened, .. } = self.connections;
        (opened, idle_opened) == (asked, idle_asked) && self.error_count() == 0
    }

    /// Reads a run from a file; `-` is standard input.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is no run of a version that is understood.
    pub fn read(path: &Path) -> anyhow::Result<Run> {
        let mut text = String::new();
        let read = match path.to_str() {
            Some("-") => io::stdin().read_to_string(&mut text),
            _ => File::open(path).and_then(|file| BufReader::new(file).read_to_string(&mut text)),
        };
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Run::parse(&text).with_context(|| format!("{} is not a run of `echoloop bench`", path.display()))
    }

    /// Reads a run from its JSON.
    ///
    /// # Errors
    ///
    /// If it is no run of a version that is understood, or one of its figures or histograms cannot be.
    pub fn parse(text: &str) -> anyhow::Result<Run> {
        #[derive(Deserialize)]
        struct Marks {
            schema: String,
            version: u32,
        }
        let marks: Marks = serde_json::from_str(text)?;
        ensure!(marks.schema == SCHEMA, "its schema is {:?}, and not {SCHEMA:?}", marks.schema);
        ensure!(marks.version == VERSION, "its version is {}, and this program reads {VERSION}", marks.version);
        check_figures(&serde_json::from_str(text)?)?;
        let run: Run = serde_json::from_str(text)?;
        for latency in run.latencies() {
            latency.decode()?;
        }
        Ok(run)
    }

    fn latencies(&self) -> impl Iterator<Item = &Latency> {
        let search = self.search.iter().flat_map(|search| &search.steps).map(|step| &step.response);
        let timeline = self.timeline.iter().map(|interval| &interval.response);
        [&self.response, &self.connections.connect].into_iter().chain(&self.service).chain(timeline).chain(search)
    }

    /// Adds up runs that several processes or machines made of the same test at the same time.
    ///
    /// # Errors
    ///
    /// If there are none, or they are not of the same test.
    pub fn merge(runs: &[Run]) -> anyhow::Result<Run> {
        let Some((first, others)) = runs.split_first() else { bail!("there are no runs to merge") };
        let mut sum = Sum::new(first)?;
        for run in others {
            ensure_same_test(first, run)?;
            sum.add(run)?;
        }
        Ok(sum.finish())
    }
}

/// How often wrong bytes came back, among these errors.
pub(super) fn wrong_bytes<'a>(errors: impl Iterator<Item = &'a ErrorCount>) -> u64 {
    let wrong = |error: &&ErrorCount| matches!(error.kind, ErrorKind::Mismatch | ErrorKind::Excess);
    errors.filter(wrong).map(|error| error.count).sum()
}

/// Makes sure that two runs can be added up.
fn ensure_same_test(first: &Run, other: &Run) -> anyhow::Result<()> {
    let test = |run: &Run| {
        let Settings { smallest, largest, depth, rate, reconnect, .. } = run.config;
        [
            ("smallest message", smallest.to_string()),
            ("largest message", largest.to_string()),
            ("depth", depth.to_string()),
            ("kind", if run.datagrams.is_some() { "datagrams" } else { "streams" }.to_owned()),
            ("loop", if rate.is_some() { "open" } else { "closed" }.to_owned()),
            ("messages before a reconnect", reconnect.map_or("no limit".to_owned(), |n| n.to_string())),
        ]
    };
    for ((what, here), (_, there)) in test(first).into_iter().zip(test(other)) {
        ensure!(
            here == there,
            "{:?} and {:?} are not the same test: {what}: {here} and {there}",
            first.name,
            other.name
        );
    }
    ensure!(
        first.search.is_none() && other.search.is_none(),
        "searches for a rate cannot be merged: each of them found a rate of its own"
    );
    Ok(())
}

/// The largest figure that is believed: up to here JSON's numbers are exact in every language (RFC 8259, section 6),
/// and sums of thousands of them do not overflow.
const LARGEST_FIGURE: f64 = 9_007_199_254_740_992.0;

/// Refuses figures that no run has.
fn check_figures(json: &serde_json::Value) -> anyhow::Result<()> {
    match json {
        serde_json::Value::Object(fields) => {
            // A seed is no figure, but any number.
            for (name, value) in fields.iter().filter(|(name, _)| *name != "seed") {
                check_figures(value).with_context(|| name.clone())?;
            }
        }
        serde_json::Value::Array(values) => values.iter().try_for_each(check_figures)?,
        serde_json::Value::Number(number) => {
            let plausible = number.as_f64().is_some_and(|number| (0.0..=LARGEST_FIGURE).contains(&number));
            ensure!(plausible, "{number} cannot be");
        }
        _ => {}
    }
    Ok(())
}

/// Runs that are being added up.
struct Sum {
    run: Run,
    response: Histogram<u64>,
    service: Option<Histogram<u64>>,
    connect: Histogram<u64>,
    timeline: Vec<Histogram<u64>>,
}

impl Sum {
    fn new(first: &Run) -> anyhow::Result<Self> {
        Ok(Sum {
            run: first.clone(),
            response: first.response.decode()?,
            service: first.service.as_ref().map(Latency::decode).transpose()?,
            connect: first.connections.connect.decode()?,
            timeline: first.timeline.iter().map(|interval| interval.response.decode()).collect::<Result<_, _>>()?,
        })
    }

    fn add(&mut self, other: &Run) -> anyhow::Result<()> {
        let run = &mut self.run;
        run.merged += other.merged;
        run.interrupted |= other.interrupted;
        run.started = run.started.clone().min(other.started.clone());
        run.seconds = run.seconds.max(other.seconds);
        run.rate += other.rate;
        run.bytes_per_second += other.bytes_per_second;

        run.config.connections += other.config.connections;
        run.config.idle += other.config.idle;
        run.config.rate = run.config.rate.zip(other.config.rate).map(|(here, there)| here + there);
        run.config.connect_rate =
            run.config.connect_rate.zip(other.config.connect_rate).map(|(here, there)| here + there);
        run.config.messages = run.config.messages.zip(other.config.messages).map(|(here, there)| here + there);
        if run.config.address != other.config.address {
            run.config.address = format!("{}, {}", run.config.address, other.config.address);
        }
        run.config.sources.extend_from_slice(&other.config.sources);

        run.connections.asked += other.connections.asked;
        run.connections.opened += other.connections.opened;
        run.connections.idle_asked += other.connections.idle_asked;
        run.connections.idle_opened += other.connections.idle_opened;
        run.connections.reopened += other.connections.reopened;
        run.connections.opening_seconds = run.connections.opening_seconds.max(other.connections.opening_seconds);

        run.messages.replies += other.messages.replies;
        run.messages.bytes += other.messages.bytes;
        run.messages.sent += other.messages.sent;
        run.messages.missed += other.messages.missed;
        run.messages.unanswered += other.messages.unanswered;

        if let (Some(sum), Some(datagrams)) = (&mut run.datagrams, &other.datagrams) {
            sum.lost += datagrams.lost;
            sum.reordered += datagrams.reordered;
            sum.duplicates += datagrams.duplicates;
        }

        add(&mut self.response, &other.response)?;
        add(&mut self.connect, &other.connections.connect)?;
        if let (Some(sum), Some(service)) = (&mut self.service, &other.service) {
            add(sum, service)?;
        }
        for (number, interval) in other.timeline.iter().enumerate() {
            let Some(sum) = run.timeline.get_mut(number) else {
                run.timeline.push(interval.clone());
                self.timeline.push(interval.response.decode()?);
                continue;
            };
            sum.seconds = sum.seconds.max(interval.seconds);
            sum.replies += interval.replies;
            sum.bytes += interval.bytes;
            sum.connections += interval.connections;
            sum.errors += interval.errors;
            add(&mut self.timeline[number], &interval.response)?;
        }

        let mut errors: BTreeMap<ErrorKind, ErrorCount> =
            run.errors.drain(..).map(|error| (error.kind, error)).collect();
        for error in &other.errors {
            let sum = errors.entry(error.kind).or_insert_with(|| ErrorCount { count: 0, ..error.clone() });
            sum.count += error.count;
        }
        run.errors = errors.into_values().collect();
        run.mismatches.extend_from_slice(&other.mismatches);

        run.generator.cpu_seconds += other.generator.cpu_seconds;
        run.generator.late += other.generator.late;
        run.generator.warnings.extend(other.generator.warnings.iter().map(|text| format!("{}: {text}", other.name)));
        // Two runs that watched one process would count its time twice.
        run.watched = None;
        Ok(())
    }

    fn finish(mut self) -> Run {
        self.run.response = Latency::from(&self.response);
        self.run.service = self.service.as_ref().map(Latency::from);
        self.run.connections.connect = Latency::from(&self.connect);
        for (interval, histogram) in self.run.timeline.iter_mut().zip(&self.timeline) {
            interval.response = Latency::from(histogram);
        }
        self.run
    }
}

fn add(sum: &mut Histogram<u64>, latency: &Latency) -> anyhow::Result<()> {
    sum.add(latency.decode()?).map_err(|error| anyhow::anyhow!("a histogram is out of range: {error}"))
}

impl Host {
    /// This machine.
    pub(super) fn here(open_files: Option<u64>) -> Self {
        let system = rustix::system::uname();
        Host {
            system: format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
            architecture: std::env::consts::ARCH.to_owned(),
            processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            open_files,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::{Criterion, latency, report};
    use proptest::prelude::*;

    pub fn latency_of(samples: &[u64]) -> Latency {
        let mut histogram = latency::histogram();
        samples.iter().for_each(|&sample| histogram.saturating_record(sample));
        Latency::from(&histogram)
    }

    /// A run that measured these latencies, in nanoseconds, one a second.
    pub fn sample(name: &str, latencies: &[u64]) -> Run {
        let (schema, version, echoloop) = Run::marks();
        let count = latencies.len() as u64;
        Run {
            schema,
            version,
            echoloop,
            name: name.to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            merged: 1,
            interrupted: false,
            config: Settings {
                address: "127.0.0.1:7777".to_owned(),
                connections: 1,
                idle: 0,
                connect_rate: None,
                smallest: 64,
                largest: 64,
                depth: 1,
                rate: None,
                duration: Some(count as f64),
                messages: None,
                warm_up: 1.0,
                reconnect: None,
                sources: Vec::new(),
                timeout: 5.0,
                seed: 1,
                busy_poll: 0.0,
            },
            host: Host::here(Some(1024)),
            connections: Connections {
                asked: 1,
                opened: 1,
                idle_asked: 0,
                idle_opened: 0,
                opening_seconds: 0.1,
                reopened: 0,
                connect: latency_of(&[50_000]),
            },
            seconds: count as f64,
            rate: 1.0,
            bytes_per_second: 64.0,
            messages: Messages { replies: count, bytes: 64 * count, sent: count, missed: 0, unanswered: 0 },
            response: latency_of(latencies),
            service: None,
            datagrams: None,
            timeline: (0..count)
                .map(|second| Interval {
                    at: second as f64,
                    seconds: 1.0,
                    replies: 1,
                    bytes: 64,
                    connections: 1,
                    errors: 0,
                    response: latency_of(&latencies[second as usize..][..1]),
                })
                .collect(),
            errors: Vec::new(),
            mismatches: Vec::new(),
            generator: Generator { cpu_seconds: 0.5, late: 0, warnings: Vec::new() },
            watched: None,
            search: None,
        }
    }

    #[test]
    fn a_run_reads_back_as_it_was_written() {
        let run = sample("one", &[1_000_000, 2_000_000]);
        assert_eq!(Run::parse(&serde_json::to_string(&run).unwrap()).unwrap(), run);
    }

    #[test]
    fn what_is_no_run_is_refused_with_the_reason() {
        let mut run = sample("one", &[1_000_000]);
        let error = |run: &Run| Run::parse(&serde_json::to_string(run).unwrap()).unwrap_err().to_string();
        run.version = 2;
        assert!(error(&run).contains("version is 2"));
        run.schema = "something".into();
        assert!(error(&run).contains("\"something\""));
        let mut run = sample("one", &[1_000_000]);
        run.timeline[0].response.histogram.truncate(10);
        assert!(error(&run).contains("histogram"));
        let text = serde_json::to_string(&sample("one", &[1_000_000])).unwrap();
        let error = Run::parse(&text.replace("\"warm_up\":1.0", "\"warm_up\":-1.0")).unwrap_err();
        assert_eq!(format!("{error:#}"), "config: warm_up: -1.0 cannot be");
        assert!(Run::parse("{}").unwrap_err().to_string().contains("schema"));
        assert!(Run::parse("").is_err());
    }

    #[test]
    fn merging_adds_histograms_and_counts() {
        let runs = [sample("one", &[1_000_000, 2_000_000]), sample("two", &[9_000_000; 3])];
        let merged = Run::merge(&runs).unwrap();
        assert_eq!(merged.response, latency_of(&[1_000_000, 2_000_000, 9_000_000, 9_000_000, 9_000_000]));
        assert_eq!((merged.merged, merged.messages.replies, merged.rate), (2, 5, 2.0));
        assert_eq!(merged.timeline.len(), 3);
        assert_eq!(merged.timeline[0].response, latency_of(&[1_000_000, 9_000_000]));
        assert_eq!(merged.timeline[2].response, latency_of(&[9_000_000]));
        assert_eq!(merged.connections.connect.count, 2);
    }

    #[test]
    fn different_tests_are_not_merged() {
        let mut other = sample("other", &[1]);
        other.config.depth = 2;
        let error = Run::merge(&[sample("one", &[1]), other]).unwrap_err().to_string();
        assert!(error.contains("depth: 1 and 2"), "{error}");
        assert!(Run::merge(&[]).is_err());
    }

    /// All values that have none in them.
    fn find_leaves<'a>(value: &'a mut serde_json::Value, leaves: &mut Vec<&'a mut serde_json::Value>) {
        match value {
            serde_json::Value::Object(fields) => fields.values_mut().for_each(|value| find_leaves(value, leaves)),
            serde_json::Value::Array(values) => {
                values.iter_mut().for_each(|value| find_leaves(value, leaves));
            }
            leaf => leaves.push(leaf),
        }
    }

    /// What is read is written as it was, and can be reported, merged and judged; what is refused is told why.
    fn check(text: &str) -> Result<(), TestCaseError> {
        match Run::parse(text) {
            Ok(run) => {
                prop_assert_eq!(&Run::parse(&serde_json::to_string(&run).unwrap()).unwrap(), &run);
                let _ = report::text(&run);
                report::comparison(&[run.clone(), run.clone()]);
                let _ = report::html::page(std::slice::from_ref(&run));
                let _ = "p99>1ms".parse::<Criterion>().unwrap().judge_run(&run);
                let _ = Run::merge(&[run.clone(), run]);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn damaged_json_is_refused_without_a_panic(at in 0usize..4000, byte in any::<u8>()) {
            let mut text = serde_json::to_vec(&sample("one", &[1_000_000])).unwrap();
            let at = at % text.len();
            text[at] = byte;
            if let Ok(text) = String::from_utf8(text) {
                check(&text)?;
            }
        }

        #[test]
        fn a_figure_that_cannot_be_is_refused_or_reported_without_a_panic(
            at in any::<prop::sample::Index>(),
            figure in prop::sample::select(vec!["0", "-1", "0.5", "1e308", "18446744073709551615", "\"\"", "null", "[]"]),
        ) {
            let mut json = serde_json::to_value(sample("one", &[1_000_000, 3_000_000])).unwrap();
            let mut leaves = Vec::new();
            find_leaves(&mut json, &mut leaves);
            let leaf = at.index(leaves.len());
            *leaves[leaf] = serde_json::from_str(figure).unwrap();
            check(&json.to_string())?;
        }
    }
}
