//! What a run came to, as it is written to a file, read back, merged and compared.
//!
//! The types here are the schema: `echoloop report --schema` prints it from them. They hold plain numbers in the units
//! that their names end in, and do not know how they were measured.

use std::fmt::Write;
use std::fs::File;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::HumanCount;
use log::debug;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Criterion;
use super::latency::Latency;
use super::payload::Mismatch;
use crate::build::{self, Build};
use crate::count::counted;
use crate::stdio;

/// What the `schema` field says.
const SCHEMA: &str = "echoloop-bench";

/// What the `version` field says. It changes when a reader of older files would misunderstand newer ones.
const VERSION: u32 = 2;

/// A run of `echoloop bench`, or several that were merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Always "echoloop-bench".
    pub schema: String,
    /// The version of this schema: 2.
    pub version: u32,
    /// The version of echoloop that made the run.
    pub echoloop: String,
    /// What that echoloop was built from; null if its version did not tell.
    #[serde(default)]
    pub build: Option<Build>,
    /// What tells this run from all others: 32 hexadecimal digits. Of a run of version 1 they are made from its contents.
    #[serde(default)]
    #[schemars(extend("pattern" = "^[0-9a-f]{32}$"))]
    pub id: String,
    /// What its user called the run.
    pub name: String,
    /// When it began to connect, UTC, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub started: String,
    /// When the measured window began, UTC, RFC 3339. Of a run of version 1 it is estimated.
    #[serde(default)]
    #[schemars(extend("format" = "date-time"))]
    pub measured_from: String,
    /// When the measured window ended.
    #[serde(default)]
    #[schemars(extend("format" = "date-time"))]
    pub measured_to: String,
    /// How many runs, each of a process of its own, are in it.
    pub merged: u64,
    /// The runs that were merged; empty if it is one.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Whether its window was ended before its time, by a signal.
    pub interrupted: bool,
    /// Why its window was ended before its time; null if it was not.
    #[serde(default)]
    pub cut: Option<Cut>,
    /// The addresses, in numbers, that were measured: of a name that has several, those that the connections went to.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What was asked for.
    pub config: Settings,
    /// The machine that made the load.
    pub host: Host,
    /// The connections that carried messages, and those that were held idle.
    pub connections: Connections,
    /// The length of the measured window, without the warm-up.
    pub seconds: f64,
    /// Replies per second: those to messages that were due in the measured window. Counted are those that came before its
    /// end, over its length; or all of them, over the time in which they came, if that is more.
    pub rate: f64,
    /// Bytes of these replies per second.
    pub bytes_per_second: f64,
    /// The messages of the measured window.
    pub messages: Messages,
    /// What became of each message that was due in the measured window. Of a run of version 1 it is estimated.
    #[serde(default)]
    pub outcomes: Outcomes,
    /// Whether the rate of an open loop was kept; null in a closed loop, and of a run of version 1.
    #[serde(default)]
    pub rate_kept: Option<RateKept>,
    /// From when a message was due to its whole reply. In a closed loop it is due when it is sent.
    pub response: Latency,
    /// From when a message was sent to its whole reply. Null in a closed loop, where it is the same.
    pub service: Option<Latency>,
    /// Which servers answered, told apart by the line that each sent first (--by-greeting); empty if they were not.
    #[serde(default)]
    pub backends: Vec<Backend>,
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
    /// Each --fail-if expression, and whether it held.
    #[serde(default)]
    pub criteria: Vec<Verdict>,
}

/// One of the runs that were merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// Its `id`.
    #[schemars(extend("pattern" = "^[0-9a-f]{32}$"))]
    pub id: String,
    /// What it is called, told apart from others of the same name.
    pub name: String,
    /// The machine that made it.
    pub host: String,
    /// The addresses that it measured.
    pub addresses: Vec<String>,
    /// When its measured window began, UTC, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub measured_from: String,
    /// When its measured window ended.
    #[schemars(extend("format" = "date-time"))]
    pub measured_to: String,
    /// Replies per second of its own window.
    pub rate: f64,
    /// Replies in its own window.
    pub replies: u64,
    /// What went wrong in it.
    pub errors: u64,
}

/// A criterion, and what it was judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The criterion.
    pub criterion: String,
    /// Whether it holds.
    pub holds: bool,
    /// The figure as it was.
    pub figure: String,
}

/// What was asked for. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// The address that was loaded.
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
    /// The rate of an open loop, in messages per second over all connections; null in a closed loop.
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
    /// Its name.
    #[serde(default)]
    pub name: String,
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
    /// Connections that were opened in the measured window, in place of others.
    pub reopened: u64,
    /// From before connect(2) to when it was seen to be done.
    pub connect: Latency,
    /// From closing our side, with everything answered, to when the connection was gone. Null if none was closed by us.
    #[serde(default)]
    pub closing: Option<Latency>,
    /// Those of them whose server did not close its side in the time that is waited for it.
    #[serde(default)]
    pub never_closed: u64,
    /// Connections that were still being closed when the run ended; they are not in `closing`.
    #[serde(default)]
    pub still_closing: u64,
}

/// Messages that were due in the measured window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Messages {
    /// Messages whose reply came whole and right, in time or late.
    pub replies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that were never sent.
    pub missed: u64,
    /// Messages that were sent and never answered, or failed.
    pub unanswered: u64,
}

/// What became of each message that was due in the measured window: the five outcomes add up to `due`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcomes {
    /// Messages that were due.
    pub due: u64,
    /// Messages that were answered within the timeout, counted from when they were due.
    pub answered: u64,
    /// Messages that were answered later than that.
    pub answered_late: u64,
    /// Messages that were sent and not answered.
    pub unanswered: u64,
    /// Messages that were sent and whose connection failed.
    pub failed: u64,
    /// Messages that were never sent, by reason.
    pub never_sent: NeverSent,
}

/// Messages that were never sent, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NeverSent {
    /// There was no connection to send them on.
    pub connection_gone: u64,
    /// Their connections were free, but the generator did not get to it.
    pub generator_behind: u64,
    /// Their connections took nothing more until the end.
    pub end_reached: u64,
}

/// Why a measured window was ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// A signal asked for the end.
    Interrupted,
    /// No connection was left, or nobody answered any more.
    NoConnection,
    /// A step of a search had seen enough.
    Enough,
}

/// Whether the rate of an open loop was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RateKept {
    /// Whether all messages, a hundredth apart, were answered in time.
    pub kept: bool,
    /// Who was the limit, if it was not.
    pub limit: Option<Limit>,
    /// The same in words.
    pub text: String,
}

/// Who was the limit where a rate was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The server.
    Server,
    /// The load generator itself.
    Generator,
    /// Connections that were gone.
    Connections,
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

/// A server behind the address, and its part of the measured window. Messages that were never sent are no backend's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// The line that it sent first.
    pub greeting: String,
    /// Connections that received it, in the whole run, idle ones included.
    pub connections: u64,
    /// Messages that it answered, in time or late.
    pub replies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that were sent to it and not answered, or whose connection failed.
    pub unanswered: u64,
    /// From when a message was due to its whole reply.
    pub response: Latency,
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
    /// A datagram could not be sent, or was refused where it went.
    Unreachable,
}

impl ErrorKind {
    /// So many of them, in words.
    pub fn counted(self, count: u64) -> String {
        let (one, many) = match self {
            ErrorKind::Refused => ("connection refused", "connections refused"),
            ErrorKind::ConnectTimeout => ("connect timed out", "connects timed out"),
            ErrorKind::ConnectFailed => ("connect failed", "connects failed"),
            ErrorKind::Reset => ("connection reset", "connections reset"),
            ErrorKind::ClosedEarly => ("connection closed early", "connections closed early"),
            ErrorKind::ReplyTimeout => ("reply timed out", "replies timed out"),
            ErrorKind::Mismatch => ("piece of wrong bytes", "pieces of wrong bytes"),
            ErrorKind::Excess => ("reply to nothing", "replies to nothing"),
            ErrorKind::Failed => ("connection failed", "connections failed"),
            ErrorKind::Unreachable => ("datagram refused or not sent", "datagrams refused or not sent"),
        };
        format!("{} {}", HumanCount(count), if count == 1 { one } else { many })
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
    /// How long after they were due messages left whose connections were free. Null in a closed loop.
    #[serde(default)]
    pub lateness: Option<Latency>,
    /// How long it stood still, once for each turn of its loop: neither sent nor looked at what came.
    #[serde(default)]
    pub stalls: Option<Latency>,
    /// The names of those figures of the response time that its own stalls can explain, such as "p99.9" and "max".
    #[serde(default)]
    #[schemars(extend("items" = serde_json::json!({ "type": "string", "enum": FIGURES })))]
    pub explains: Vec<String>,
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
    /// Why it ended before it had found out; null if it did.
    #[serde(default)]
    pub ended: Option<String>,
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
    /// Whether the criterion was shown to hold with a confidence of 95 %, the rate was kept, and nothing went wrong.
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
        (SCHEMA.to_owned(), VERSION, build::VERSION.to_owned())
    }

    /// The version of echoloop that made it, with the commit if that is known.
    pub(super) fn maker(&self) -> String {
        match self.build.as_ref().and_then(|build| build.commit.as_ref()) {
            Some(commit) => format!("{} ({commit})", self.echoloop),
            None => self.echoloop.clone(),
        }
    }

    /// Everything that went wrong.
    pub fn error_count(&self) -> u64 {
        sum(self.errors.iter())
    }

    /// The places where wrong bytes came back.
    pub fn mismatch_count(&self) -> u64 {
        wrong_bytes(self.errors.iter())
    }

    /// Whether every connection that was asked for was opened and somebody was there until the end, every byte that came
    /// back was right, and something came back at all, if anything was asked for.
    pub fn is_sound(&self) -> bool {
        let Connections { asked, opened, idle_asked, idle_opened, .. } = self.connections;
        (opened, idle_opened) == (asked, idle_asked)
            && self.error_count() == 0
            && self.cut != Some(Cut::NoConnection)
            && (asked == 0 || self.messages.replies > 0)
    }

    /// The exit code: 3 if it was not as good as it was to be, 1 if something went wrong.
    pub fn exit_code(&self) -> u8 {
        const NOT_GOOD_ENOUGH: u8 = 3;
        let gave_up = |search: &Search| search.ended.is_some() && self.cut != Some(Cut::Interrupted);
        match &self.search {
            _ if self.criteria.iter().any(|verdict| verdict.holds) => NOT_GOOD_ENOUGH,
            Some(search) if gave_up(search) => 1,
            Some(search) if search.holds_at.is_none() => NOT_GOOD_ENOUGH,
            _ if !self.is_sound() => 1,
            _ if !self.kept_its_rate() => NOT_GOOD_ENOUGH,
            _ => 0,
        }
    }

    /// Whether the rate of an open loop was kept, where one was asked for and nothing else was looked for.
    pub fn kept_its_rate(&self) -> bool {
        self.search.is_some() || self.rate_kept.as_ref().is_none_or(|rate| rate.kept)
    }

    /// Reads the runs of a file, each with what to call it in errors; `-` is standard input. There may be several, and
    /// lines of other things around them, as in the logs of several pods.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or one of them is no run of a version that is understood, or there is none.
    pub fn read_all(path: &Path) -> anyhow::Result<Vec<(String, Run)>> {
        let mut text = String::new();
        let read = match path.to_str() {
            Some("-") => stdio::stdin().read_to_string(&mut text),
            _ => File::open(path).and_then(|file| BufReader::new(file).read_to_string(&mut text)),
        };
        let label = path.display();
        read.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow!("cannot read {label}: {error}; `echoloop bench --json {label}` would write it")
            }
            _ => anyhow::Error::new(error).context(format!("cannot read {label}")),
        })?;
        let objects = objects(&text);
        let parse = |(number, json): (usize, &&str)| {
            let label = if objects.len() == 1 { label.to_string() } else { format!("{label}, run {}", number + 1) };
            let run = Run::parse(json)
                .with_context(|| format!("{label} is not a run of `echoloop bench`, which writes one with --json"))?;
            Ok((label, run))
        };
        let runs: Vec<_> = objects.iter().enumerate().map(parse).collect::<anyhow::Result<_>>()?;
        debug!("{label}: {}", counted(runs.len(), "run"));
        Ok(runs)
    }

    /// Reads the one run of a file; `-` is standard input.
    ///
    /// # Errors
    ///
    /// As [`Run::read_all`], and if there are several.
    pub fn read(path: &Path) -> anyhow::Result<Run> {
        let mut runs = Run::read_all(path)?;
        ensure!(runs.len() == 1, "{} holds {}", path.display(), counted(runs.len(), "run"));
        Ok(runs.remove(0).1)
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
        ensure!(
            (1..=VERSION).contains(&marks.version),
            "its version is {}, and this program reads 1 to {VERSION}",
            marks.version
        );
        check_figures(&serde_json::from_str(text)?)?;
        let mut run: Run = serde_json::from_str(text)?;
        for latency in run.latencies() {
            latency.distribution()?;
        }
        if marks.version == 1 {
            run.upgrade()?;
        }
        run.check_words()?;
        Ok(run)
    }

    /// Refuses words that no run is told in.
    fn check_words(&self) -> anyhow::Result<()> {
        let own =
            [("started", &self.started), ("measured_from", &self.measured_from), ("measured_to", &self.measured_to)];
        let part =
            |part: &Part| [("measured_from", part.measured_from.clone()), ("measured_to", part.measured_to.clone())];
        let own = own.map(|(name, time)| (name, time.clone()));
        for (name, time) in own.into_iter().chain(self.parts.iter().flat_map(part)) {
            let is_time = humantime::parse_rfc3339(&time).is_ok();
            ensure!(is_time, "{name}: {time:?} is no time in UTC, such as 2026-01-01T00:00:00.5Z");
        }
        let is_id = |id: &str| id.len() == 32 && id.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        for id in self.parts.iter().map(|part| &part.id).chain([&self.id]) {
            ensure!(is_id(id), "id: {id:?} is not 32 hexadecimal digits");
        }
        for figure in &self.generator.explains {
            ensure!(FIGURES.contains(&figure.as_str()), "explains: {figure:?} is none of {}", FIGURES.join(", "));
        }
        let criteria = self.criteria.iter().map(|verdict| &verdict.criterion);
        for criterion in criteria.chain(self.search.iter().map(|search| &search.criterion)) {
            if let Err(why) = criterion.parse::<Criterion>() {
                bail!("criterion: {criterion:?}: {why}");
            }
        }
        Ok(())
    }

    /// Fills in what version 1 did not tell.
    fn upgrade(&mut self) -> anyhow::Result<()> {
        self.id = digest(serde_json::to_string(self)?.as_bytes());
        self.version = VERSION;
        self.addresses = vec![self.config.address.clone()];
        // It told of whole seconds, and of nothing that was waited for (--start-at).
        let before = self.connections.opening_seconds + self.config.warm_up;
        let later = |seconds| {
            let started = humantime::parse_rfc3339(&self.started).ok()?;
            rough_timestamp(started.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?)
        };
        let from = later(before).unwrap_or_else(|| self.started.clone());
        let to = later(before + self.seconds).unwrap_or_else(|| from.clone());
        (self.measured_from, self.measured_to) = (from, to);
        let Messages { replies, sent, missed, unanswered, .. } = self.messages;
        self.outcomes = Outcomes {
            due: sent.saturating_add(missed),
            // It counted replies that came in the window, whenever their messages had been due.
            answered: replies.min(sent.saturating_sub(unanswered)),
            unanswered: unanswered.max(sent.saturating_sub(replies)),
            never_sent: NeverSent { end_reached: missed, ..NeverSent::default() },
            ..Outcomes::default()
        };
        self.cut = self.interrupted.then_some(Cut::Interrupted);
        Ok(())
    }

    /// Judges it by what must not be so.
    ///
    /// # Errors
    ///
    /// If its histogram is damaged.
    pub fn judge(&mut self, criteria: &[Criterion]) -> anyhow::Result<()> {
        let judge = |criterion: &Criterion| {
            let (holds, figure) = criterion.judge_run(self)?;
            Ok(Verdict { criterion: criterion.to_string(), holds, figure })
        };
        self.criteria = criteria.iter().map(judge).collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    fn latencies(&self) -> impl Iterator<Item = &Latency> {
        let search = self.search.iter().flat_map(|search| &search.steps).map(|step| &step.response);
        let timeline = self.timeline.iter().map(|interval| &interval.response);
        let own = self.generator.lateness.iter().chain(&self.generator.stalls);
        let all = [&self.response, &self.connections.connect].into_iter().chain(&self.service).chain(timeline);
        let backends = self.backends.iter().map(|backend| &backend.response);
        all.chain(search).chain(own).chain(&self.connections.closing).chain(backends)
    }
}

/// How often wrong bytes came back, among these errors.
pub(super) fn wrong_bytes<'a>(errors: impl Iterator<Item = &'a ErrorCount>) -> u64 {
    let wrong = |error: &&ErrorCount| matches!(error.kind, ErrorKind::Mismatch | ErrorKind::Excess);
    sum(errors.filter(wrong))
}

/// How many these errors are. Files can hold any numbers.
fn sum<'a>(errors: impl Iterator<Item = &'a ErrorCount>) -> u64 {
    errors.map(|error| error.count).fold(0, u64::saturating_add)
}

/// The figures of the response time that a generator's stalls can explain.
const FIGURES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

/// Figures that may be less than nothing: memory that shrank.
const SIGNED: [&str; 1] = ["resident_per_connection"];

/// The largest figure with a fraction that is believed. Sums of thousands of them are still far from infinity.
const LARGEST_FIGURE: f64 = 1e20;

/// The JSON objects of a text, of which each begins a line and ends one; all of it, if it has none.
fn objects(text: &str) -> Vec<&str> {
    let (mut objects, mut rest) = (Vec::new(), text);
    while let Some(line) = rest.split_inclusive('\n').next() {
        let mut length = line.len();
        if line.trim_start().starts_with('{') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
            let is_whole = values.next().is_some_and(|value| value.is_ok());
            let end = if is_whole { values.byte_offset() } else { rest.len() };
            length = rest[end..].find('\n').map_or(rest.len(), |newline| end + newline + 1);
            objects.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    if objects.is_empty() { vec![text] } else { objects }
}

/// Refuses figures that no run has. Whole numbers have bounds in their types.
fn check_figures(json: &serde_json::Value) -> anyhow::Result<()> {
    match json {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let lowest = if SIGNED.contains(&name.as_str()) { -LARGEST_FIGURE } else { 0.0 };
                check_figure(value, lowest).with_context(|| name.clone())?;
            }
        }
        value => check_figure(value, 0.0)?,
    }
    Ok(())
}

fn check_figure(json: &serde_json::Value, lowest: f64) -> anyhow::Result<()> {
    match json {
        serde_json::Value::Object(_) => check_figures(json),
        serde_json::Value::Array(values) => values.iter().try_for_each(check_figures),
        serde_json::Value::Number(number) if !number.is_u64() => {
            let plausible = number.as_f64().is_some_and(|number| (lowest..=LARGEST_FIGURE).contains(&number));
            ensure!(plausible, "{number} cannot be");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A time as runs tell it: UTC, RFC 3339, to the microsecond. Before 1970 and after 9999 there is none.
pub(super) fn timestamp(time: SystemTime) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", humantime::format_rfc3339_micros(time)).ok()?;
    Some(text)
}

/// The time of a run that began when there was none.
pub(super) fn no_time() -> String {
    "1970-01-01T00:00:00Z".to_owned()
}

/// A time that is only known to the second.
fn rough_timestamp(time: SystemTime) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", humantime::format_rfc3339_seconds(time)).ok()?;
    Some(text)
}

/// What tells one run from all others.
pub(super) fn identity() -> String {
    // The standard library's hashers start from the system's random numbers.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// The same for the same text.
pub(super) fn digest(text: &[u8]) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, text).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}

impl Host {
    /// This machine.
    pub(super) fn here(open_files: Option<u64>) -> Self {
        let system = rustix::system::uname();
        Host {
            name: system.nodename().to_string_lossy().into_owned(),
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
    use crate::bench::{latency, merge, report};
    use proptest::prelude::*;
    use serde_json::Value;

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
            build: Some(Build::this()),
            id: digest(name.as_bytes()),
            name: name.to_owned(),
            started: "2026-01-01T00:00:00.900000Z".to_owned(),
            measured_from: "2026-01-01T00:00:02.000000Z".to_owned(),
            measured_to: format!("2026-01-01T00:00:{:02}.000000Z", 2 + count.min(57)),
            merged: 1,
            parts: Vec::new(),
            interrupted: false,
            cut: None,
            addresses: vec!["127.0.0.1:7777".to_owned()],
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
                closing: None,
                never_closed: 0,
                still_closing: 0,
            },
            seconds: count as f64,
            rate: 1.0,
            bytes_per_second: 64.0,
            messages: Messages { replies: count, bytes: 64 * count, sent: count, missed: 0, unanswered: 0 },
            outcomes: Outcomes { due: count, answered: count, ..Outcomes::default() },
            rate_kept: None,
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
            generator: Generator {
                cpu_seconds: 0.5,
                late: 0,
                lateness: None,
                stalls: None,
                explains: Vec::new(),
                warnings: Vec::new(),
            },
            backends: Vec::new(),
            watched: None,
            search: None,
            criteria: Vec::new(),
        }
    }

    #[test]
    fn runs_are_found_among_lines_of_a_log() {
        let [one, two] = [sample("one", &[1_000_000]), sample("two", &[2_000_000])];
        let pretty = |run: &Run| serde_json::to_string_pretty(run).unwrap();
        let names = |text: &str| {
            let runs = objects(text).into_iter().map(Run::parse).collect::<anyhow::Result<Vec<_>>>();
            runs.map(|runs| runs.into_iter().map(|run| run.name).collect::<Vec<_>>())
        };
        let log = format!("late\n\n{}\nerror: {{\n{}\nthe end", pretty(&one), serde_json::to_string(&two).unwrap());
        assert_eq!(names(&log).unwrap(), ["one", "two"]);
        assert_eq!(names(&pretty(&one)).unwrap(), ["one"]);
        let cut = log.replace("\n}\nerror", "\nerror");
        for wrong in ["", "no run at all", &format!("{} and more", pretty(&one)), &cut, "{}"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_run_reads_back_as_it_was_written() {
        let run = sample("one", &[1_000_000, 2_000_000]);
        assert_eq!(Run::parse(&serde_json::to_string(&run).unwrap()).unwrap(), run);
    }

    #[test]
    fn figures_of_all_sizes_read_back() {
        let mut run = sample("one", &[1_000_000]);
        (run.config.messages, run.config.seed) = (Some(u64::MAX), u64::MAX);
        run.watched = Some(Watched {
            pid: 1,
            cpu_seconds: 0.0,
            cpu_us_per_message: 0.1 + 0.2,
            resident_before: 9 << 20,
            resident_connected: 8 << 20,
            resident_peak: 9 << 20,
            resident_per_connection: -104_857.6,
        });
        assert_eq!(Run::parse(&serde_json::to_string(&run).unwrap()).unwrap(), run);
    }

    #[test]
    fn files_of_version_1_are_read() {
        let text = include_str!("../../tests/runs/version-1.json");
        let run = Run::parse(text).unwrap();
        assert_eq!((run.version, run.merged, run.parts.len(), run.criteria.len()), (2, 1, 0, 0));
        assert_eq!((run.messages.replies, run.response.count, run.timeline.len()), (5000, 5000, 3));
        assert_eq!(run.addresses, [run.config.address.as_str()]);
        assert_eq!(run.measured_from, run.started, "0.2 s later, to the second");
        assert_eq!(run.id, Run::parse(text).unwrap().id, "a file is the same run each time that it is read");
        assert_eq!(Run::parse(&serde_json::to_string(&run).unwrap()).unwrap(), run);
        assert!(report::text(&run).unwrap().contains("version 1"));
    }

    #[test]
    fn file_without_a_run_is_refused_with_reason() {
        let mut run = sample("one", &[1_000_000]);
        let error = |run: &Run| Run::parse(&serde_json::to_string(run).unwrap()).unwrap_err().to_string();
        run.version = 3;
        assert!(error(&run).contains("version is 3"));
        run.schema = "something".into();
        assert!(error(&run).contains("\"something\""));
        let mut run = sample("one", &[1_000_000]);
        run.timeline[0].response.histogram.truncate(10);
        assert!(error(&run).contains("histogram"));
        let text = serde_json::to_string(&sample("one", &[1_000_000])).unwrap();
        let error = Run::parse(&text.replace("\"warm_up\":1.0", "\"warm_up\":-1.0")).unwrap_err();
        assert_eq!(format!("{error:#}"), "config: warm_up: -1.0 cannot be");
        for (name, word) in [
            ("measured_from", "nonsense"),
            ("measured_to", ""),
            ("started", "2026-13-01T00:00:00Z"),
            ("id", "1"),
            ("explains", "p75"),
            ("lower_bounds", "p75_us"),
            ("criterion", "p99"),
        ] {
            let mut json = serde_json::to_value(sample("one", &[1_000_000])).unwrap();
            match name {
                "explains" => json["generator"][name] = [word].into(),
                "lower_bounds" => json["response"][name] = [word].into(),
                "criterion" => json["criteria"] = serde_json::json!([{ name: word, "holds": true, "figure": "" }]),
                _ => json[name] = word.into(),
            }
            let error = Run::parse(&json.to_string()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(&format!("{word:?}")), "{error}");
        }
        let text = text.replacen("\"count\":1", "\"count\":2", 1);
        let error = Run::parse(&text).unwrap_err().to_string();
        assert!(error.contains("tells of 2") && error.contains("holds 1"), "{error}");
        assert!(Run::parse("{}").unwrap_err().to_string().contains("schema"));
        assert!(Run::parse("").is_err());
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
                let _ = report::comparison(&[run.clone(), run.clone()]);
                let _ = report::html::page(std::slice::from_ref(&run));
                let _ = "p99>1ms".parse::<Criterion>().unwrap().judge_run(&run);
                let other = Run { id: "another".to_owned(), ..run.clone() };
                let _ = merge(&[("one".to_owned(), run), ("other".to_owned(), other)], None);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        Ok(())
    }

    /// Any value that `schema` allows, as far as the types of a run do.
    fn any_of(root: &Value, schema: &Value, name: &str, random: &mut fastrand::Rng) -> Value {
        if let Some(path) = schema["$ref"].as_str() {
            let definition = root.pointer(path.trim_start_matches('#')).unwrap();
            return any_of(root, definition, name, random);
        }
        for alternatives in ["anyOf", "oneOf"] {
            if let Some(all) = schema[alternatives].as_array() {
                return any_of(root, &all[random.usize(..all.len())], name, random);
            }
        }
        if !schema["const"].is_null() {
            return schema["const"].clone();
        }
        if let Some(words) = schema["enum"].as_array() {
            return words[random.usize(..words.len())].clone();
        }
        let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
        match kinds[random.usize(..kinds.len())].as_str().unwrap() {
            "object" => {
                let fields = schema["properties"].as_object().unwrap();
                let any = fields.iter().map(|(name, field)| (name.clone(), any_of(root, field, name, random)));
                let mut object: serde_json::Map<_, _> = any.collect();
                if let Some(Value::String(histogram)) = object.get("histogram") {
                    let count = latency::decode(histogram).unwrap().len();
                    object.insert("count".to_owned(), count.into());
                    object.insert("bounds".to_owned(), 0.into());
                }
                object.into()
            }
            "array" => (0..random.usize(..4)).map(|_| any_of(root, &schema["items"], name, random)).collect(),
            "integer" if schema["format"] == "int32" => random.i32(1..).into(),
            "integer" if schema["format"] == "uint8" => random.u8(..).into(),
            "integer" => [0, 1, random.u64(..), u64::MAX][random.usize(..4)].into(),
            "number" => {
                let sign = if SIGNED.contains(&name) && random.bool() { -1.0 } else { 1.0 };
                let figures = [0.0, random.f64(), 1e-9, random.f64() * 1e5, 10f64.powf(random.f64() * 18.0)];
                (sign * figures[random.usize(..5)]).into()
            }
            "boolean" => random.bool().into(),
            "string" if name == "bounds_histogram" => latency_of(&[]).histogram.into(),
            "string" if name == "histogram" => {
                let mut sample = || 10f64.powf(random.f64() * 12.0) as u64;
                let samples: Vec<_> = (0..sample() % 50).map(|_| sample()).collect();
                latency_of(&samples).histogram.into()
            }
            "string" if ["started", "measured_from", "measured_to"].contains(&name) => {
                let seconds = Duration::from_micros(random.u64(..1 << 54));
                timestamp(SystemTime::UNIX_EPOCH + seconds).unwrap().into()
            }
            "string" if name == "id" => digest(&random.u64(..).to_le_bytes()).into(),
            "string" if name == "criterion" => ["p99<5ms", "rate>=100000", "errors>0"][random.usize(..3)].into(),
            "string" => (0..random.usize(..9)).map(|_| random.char(..)).collect::<String>().into(),
            "null" => Value::Null,
            other => panic!("{other}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_run_reads_back_as_it_was_written(seed in any::<u64>()) {
            let schema = schemars::schema_for!(Run).to_value();
            let mut json = any_of(&schema, &schema, "", &mut fastrand::Rng::with_seed(seed));
            (json["schema"], json["version"]) = (SCHEMA.into(), VERSION.into());
            let run: Run = serde_json::from_value(json).unwrap();
            let text = serde_json::to_string(&run).unwrap();
            prop_assert_eq!(Run::parse(&text).unwrap(), run);
            check(&text)?;
        }
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
        fn impossible_figures_never_panic_a_report(
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
