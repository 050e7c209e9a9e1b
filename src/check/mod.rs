//! A grader for any echo service, from outside: each promise of an echo is tried, and every byte verified.
//!
//! `catalogue` is the promises, each with its reason, its source and what usually breaks it; `streams`, `datagrams` and
//! `process` are the experiments, one function for each, on the connections of a `lab`, which is a protocol on the
//! [reactor](crate::reactor) and a loop of one thread. What may be the fault of a busy machine is tried again, with more
//! patience, before it is told.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

mod catalogue;
mod datagrams;
mod exec;
mod lab;
mod process;
mod report;
mod streams;
mod verdict;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use indicatif::HumanCount;
use signal_hook::low_level::signal_name;

use crate::count::counted;
use crate::reactor::address::{Address, DEFAULT, Endpoint};
use crate::{destination, escape, files, limits, stdio, values};
use catalogue::{About, Promise};
use exec::Service;
use lab::Lab;
pub use report::{Judgement, Report, Verdict, lessons, schema};
use verdict::{Limits, Stop, Trouble};

/// How often a promise is tried before it is said to be broken by something that time decides.
const TRIES: u32 = 2;

/// How often a service that serves nobody is looked at again.
const LOOKS: u32 = 3;

/// What is to be checked, and how.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Check HOST:PORT, udp:HOST:PORT or unix:PATH. PORT alone is on 127.0.0.1 [default: 127.0.0.1:7777; with --exec,
    /// its port]
    #[arg(value_name = "ADDR", value_parser = destination::service)]
    pub address: Option<Address>,

    /// Connections at once. As many are opened where many are tried
    #[arg(help_heading = "How", short, long, value_name = "N", default_value_t = 100, value_parser = values::whole::<u32>(2..=100_000))]
    pub connections: u32,

    /// Expect a connection to close after the line WORD. That is judged, too
    #[arg(help_heading = "What is judged", long, value_name = "WORD", value_parser = values::word)]
    pub terminator: Option<String>,

    /// Judge by a set of promises for a purpose
    #[arg(help_heading = "What is judged", long, value_enum)]
    pub profile: Option<Profile>,

    /// Judge only these, such as bytes,ends.half-close. They are promises or groups of promises: see --list
    #[arg(help_heading = "What is judged", long, value_name = "LIST", value_delimiter = ',', value_parser = promise)]
    pub only: Vec<String>,

    /// Leave these promises or groups out
    #[arg(help_heading = "What is judged", long, value_name = "LIST", value_delimiter = ',', value_parser = promise)]
    pub skip: Vec<String>,

    /// Require these promises or groups. Others that are broken are only noted [default: all]
    #[arg(help_heading = "What is judged", long, value_name = "LIST", value_delimiter = ',', value_parser = promise)]
    pub require: Vec<String>,

    /// Wait up to DUR for each answer. A promise that fails for lack of time is tried once more, with twice as much
    #[arg(help_heading = "How", long, value_name = "DUR", default_value = "1s", value_parser = values::positive_duration)]
    pub timeout: Duration,

    /// Take at most DUR in all. What has not been judged by then has not passed
    #[arg(help_heading = "How", long, value_name = "DUR", default_value = "30s", value_parser = values::positive_duration)]
    pub max_time: Duration,

    /// Judge memory, CPU time and descriptors of process PID. Its children are included. On this machine, on Linux
    #[arg(help_heading = "How", long, value_name = "PID", value_parser = values::pid)]
    pub pid: Option<i32>,

    /// Start the service with shell command CMD. In it, {port} stands for the port of ADDR, or for a free one; check waits
    /// until the service listens, and afterwards ends it and everything it started. A service that exits or stops
    /// answering is restarted
    #[arg(help_heading = "How", long, value_name = "CMD", conflicts_with = "pid")]
    pub exec: Option<String>,

    /// Write the findings to FILE as JSON. --schema describes it; - is standard output
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the findings to FILE as JUnit XML, for CI. - is standard output
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Print all promises, and check nothing
    #[arg(help_heading = "Output", long, exclusive = true)]
    pub list: bool,

    /// Print the JSON Schema of --json, and check nothing
    #[arg(help_heading = "Output", long, exclusive = true)]
    pub schema: bool,
}

/// A set of promises for a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// What RFC 862 says
    Rfc862,
    /// A server for one message
    #[value(name = "tutorial-1")]
    Tutorial1,
    /// A server for one connection, which a word ends
    #[value(name = "tutorial-2")]
    Tutorial2,
    /// A server for many connections
    #[value(name = "tutorial-3")]
    Tutorial3,
    /// A path through a proxy, a balancer or a mesh
    Path,
}

impl Profile {
    /// What is judged; nothing here: everything.
    fn only(self) -> &'static [&'static str] {
        match self {
            Profile::Tutorial1 => &["bytes.word"],
            Profile::Tutorial2 => &["messages.closes"],
            Profile::Tutorial3 => {
                &["bytes", "many", "messages", "ends.end", "ends.close", "ends.reset", "ends.survives"]
            }
            Profile::Rfc862 | Profile::Path => &[],
        }
    }

    /// What is noted, and not required.
    fn notes(self) -> &'static [&'static str] {
        match self {
            // It says that data is sent back until the caller terminates the connection, and no word about others.
            Profile::Rfc862 => {
                &["buffers.others", "buffers.backpressure", "many", "ends.idle", "process", "datagrams.low-port"]
            }
            Profile::Path => {
                &["buffers.backpressure", "buffers.partial-send", "ends.half-close", "ends.end", "ends.idle"]
            }
            _ => &[],
        }
    }

    /// Whether the service may end after one connection.
    fn ends_early(self) -> bool {
        matches!(self, Profile::Tutorial1 | Profile::Tutorial2)
    }
}

fn promise(text: &str) -> Result<String, String> {
    let list = [text.to_owned()];
    if catalogue::ALL.iter().any(|promise| promise.is_in(&list)) {
        return Ok(text.to_owned());
    }
    let mut groups: Vec<_> = catalogue::ALL.iter().map(Promise::group).collect();
    groups.dedup();
    Err(format!("there is no such promise or group (--list prints all): write it as in {}", groups.join(", ")))
}

/// What a file of results is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Junit,
}

impl Config {
    /// What is used at most.
    fn limits(&self, endpoint: &Endpoint) -> Limits {
        if matches!(endpoint, Endpoint::Udp(_)) {
            return Limits { connections: 0, bytes: 8 << 20 };
        }
        let (many, tries) = (u64::from(self.connections), u64::from(TRIES));
        // Each promise is tried so often, and then it is seen whether the service still serves.
        let looks = catalogue::ALL.len() as u64;
        let connections = (streams::RETURNED as u64 + 2 * many + 600 + looks) * tries;
        Limits { connections, bytes: ((4 * streams::UNBOUNDED + streams::FED + (64 << 20)) as u64) * tries }
    }

    /// Refuses options that mean nothing together.
    ///
    /// # Errors
    ///
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let port = self.address.as_ref().map_or(Some(0), Address::port);
        match &self.exec {
            Some(command) if port == Some(0) && !command.contains(exec::PORT) => Err(format!(
                "--exec {command:?}: say where the port goes, as in 'server --port {{port}}'; or say at which address the \
                 service listens, as in 127.0.0.1:7777"
            )),
            None if self.address.is_some() && port == Some(0) => {
                Err("nobody listens on port 0: say which port it is, as in 127.0.0.1:7777".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn terminator(&self) -> Option<String> {
        let usual = matches!(self.profile, Some(Profile::Tutorial2)).then(|| "bye".to_owned());
        self.terminator.clone().or(usual)
    }

    /// The promises to be judged of what is at this address.
    fn selected(&self, endpoint: &Endpoint) -> Vec<&'static Promise> {
        let is_udp = matches!(endpoint, Endpoint::Udp(_));
        let of_profile: Vec<_> = self.profile.map_or(&[][..], Profile::only).iter().map(ToString::to_string).collect();
        let all = catalogue::ALL.iter();
        all.filter(|promise| (promise.about == About::Datagrams) == is_udp)
            .filter(|promise| of_profile.is_empty() || promise.is_in(&of_profile))
            .filter(|promise| self.only.is_empty() || promise.is_in(&self.only))
            .filter(|promise| !promise.is_in(&self.skip))
            .collect()
    }

    fn requires(&self, promise: &Promise) -> bool {
        let notes: Vec<_> = self.profile.map_or(&[][..], Profile::notes).iter().map(ToString::to_string).collect();
        if self.require.is_empty() { !promise.is_in(&notes) } else { promise.is_in(&self.require) }
    }
}

/// Checks what `config` says, and prints what is found. Returns the exit code.
///
/// # Errors
///
/// If there is nothing to check: the address cannot be resolved, the service not be started, nothing is selected; or if
/// what was found cannot be written.
pub fn run(config: &Config) -> anyhow::Result<u8> {
    if config.list {
        stdio::print(report::list())?;
        return Ok(0);
    }
    if config.schema {
        stdio::print(schema())?;
        return Ok(0);
    }
    let began = Instant::now();
    let open_files = limits::raise_open_files();
    let files = files::open([(Format::Json, config.json.as_ref()), (Format::Junit, config.junit.as_ref())])?;
    if let Some(pid) = config.pid {
        process::ensure_there(pid)?;
    }
    let loop_parts = lab::take_signals()?;
    let default = if config.exec.is_some() { "127.0.0.1:0" } else { DEFAULT };
    let address = config.address.clone().map_or_else(|| default.parse(), Ok)?;
    let endpoints = address.resolve().with_context(|| format!("cannot resolve {address}"))?;
    let endpoints = if config.exec.is_some() { exec::with_free_port(endpoints)? } else { endpoints };
    let endpoint = endpoints[0].clone();
    let selected = config.selected(&endpoint);
    if selected.is_empty() {
        bail!("no promise is left to judge for {address}: look at --only, --skip and --profile");
    }
    let (many, room) = (config.connections as usize, limits::room(open_files));
    ensure!(
        many <= room || matches!(endpoint, Endpoint::Udp(_)),
        "--connections {many}: the limit on open files has room for {room} at once: raise it (ulimit -n), or ask for fewer"
    );
    // What was started must be ended within the time, too.
    let spared = if config.exec.is_some() { (2 * exec::END).min(config.max_time / 4) } else { Duration::ZERO };
    let limits = config.limits(&endpoint);
    let mut lab = Lab::new(loop_parts, endpoint, config.timeout, began + config.max_time - spared, limits);
    lab.many = config.connections as usize;
    lab.terminator = config.terminator();

    let on_stdout = files.iter().any(|(_, file)| file.is_stdout());
    let print = |text: String| if on_stdout { Ok(()) } else { stdio::print(text) };
    let named = if config.exec.is_some() { lab.endpoint.to_string() } else { address.to_string() };
    print(announcement(&named, &lab.endpoint, config))?;
    let mut report = Report::new(named);
    let (mut stop, mut absent) = (None, None);
    let mut service = None;
    if let Some(template) = &config.exec {
        match Service::start(template, &mut lab)? {
            Ok(started) => service = Some(started),
            Err(ended) => stop = Some(ended),
        }
    }
    if stop.is_none() {
        match lab.choose(&endpoints) {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => absent = Some(format!("cannot connect to {}: {cause}", report.address)),
            Err(ended) => stop = Some(ended),
        }
    }
    lab.pid = config.pid.or(service.as_ref().map(Service::pid));
    let mut gone: Option<Gone> = None;
    let judged = if absent.is_some() { Vec::new() } else { selected };
    for promise in judged {
        let required = config.requires(promise);
        if let Some(lost) = gone.as_mut().filter(|_| stop.is_none())
            && lost.is_back(&mut lab)
        {
            gone = None;
        }
        let judgement = match (stop, &gone) {
            (Some(stop), _) => not_judged(promise, required, &why(stop)),
            (None, Some(gone)) => not_judged(promise, required, &gone.note()),
            (None, None) => judge(&mut lab, promise, config, &mut stop, report.judgements.is_empty()),
        };
        let judgement = if stop.is_none() && judgement.tries > 0 {
            look_after(&mut service, &mut lab, judgement, config, &mut stop, &mut gone)?
        } else {
            judgement
        };
        print(judgement.line())?;
        report.judgements.push(judgement);
    }
    drop(service);
    lab.take_along(None);
    report.seconds = began.elapsed().as_secs_f64();
    let (streams, datagrams) = (*lab.reactor.counters(), *lab.datagrams.counters());
    report.connections = streams.opened;
    report.sent_bytes = streams.sent_bytes + datagrams.sent_bytes;
    report.received_bytes = streams.received_bytes + datagrams.received_bytes;
    report.ended_early = stop.map(why).or_else(|| absent.clone());
    // Each is tried, whatever becomes of the others.
    let deliver = || -> anyhow::Result<()> {
        if absent.is_none() {
            print(report.summary())?;
        }
        let write = |(format, file): (Format, files::Output)| file.write(report.written(format)?.as_bytes());
        let written: Vec<_> = files.into_iter().map(write).collect();
        written.into_iter().collect()
    };
    lab.outside(deliver)?;
    if let Some(cause) = absent {
        bail!("{cause}: start the service first, or let check start it (--exec)");
    }
    Ok(match stop {
        Some(Stop::Signal(signal)) => 128 + u8::try_from(signal)?,
        _ => u8::from(!report.passes()),
    })
}

/// What is going to be done, at most.
fn announcement(address: &str, endpoint: &Endpoint, config: &Config) -> String {
    let address = escape::text(address);
    let (limits, many) = (config.limits(endpoint), u64::from(config.connections.max(100)));
    let bytes = ByteSize(limits.bytes).display().iec();
    match endpoint {
        Endpoint::Udp(_) => format!("checking {address}: at most {bytes} of datagrams\n"),
        _ => format!(
            "checking {address}: at most {}, {} at once, and {bytes} each way\n",
            counted(limits.connections, "connection"),
            HumanCount(many),
        ),
    }
}

fn why(stop: Stop) -> String {
    match stop {
        Stop::Signal(signal) => format!("{} ended the check", signal_name(signal).unwrap_or("a signal")),
        Stop::Time => "--max-time was reached".to_owned(),
    }
}

fn not_judged(promise: &Promise, required: bool, why: &str) -> Judgement {
    Judgement {
        id: promise.id,
        promise: promise.sentence,
        required,
        verdict: Verdict::NotJudged,
        tries: 0,
        seconds: 0.0,
        sent: None,
        got: None,
        cause: None,
        note: Some(why.to_owned()),
    }
}

/// Tries a promise, again if time decided.
fn judge(lab: &mut Lab, promise: &Promise, config: &Config, stop: &mut Option<Stop>, is_first: bool) -> Judgement {
    let (began, required) = (Instant::now(), config.requires(promise));
    let mut judgement = not_judged(promise, required, "");
    judgement.note = None;
    if lab.silent {
        judgement.note = Some("nothing comes back".to_owned());
        return judgement;
    }
    let outcome = loop {
        judgement.tries += 1;
        lab.patience = config.timeout * judgement.tries;
        let outcome = (promise.judge)(lab);
        lab.patience = config.timeout;
        if let Err(ended) = lab.clear() {
            break outcome.and(Err(ended.into()));
        }
        match &outcome {
            Err(Trouble::Broken(finding)) if finding.timing && judgement.tries < TRIES => lab.silent = false,
            _ => break outcome,
        }
    };
    judgement.seconds = began.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => judgement.verdict = Verdict::Holds,
        Err(Trouble::Note(note)) => {
            judgement.verdict = Verdict::Holds;
            judgement.note = Some(note);
        }
        Err(Trouble::Unjudged(why)) => judgement.note = Some(why),
        Err(Trouble::Stop(ended)) => {
            judgement.note = Some(why(ended));
            *stop = Some(ended);
        }
        Err(Trouble::Broken(finding)) => {
            lab.silent |= is_first && finding.sent == lab::CONNECT;
            judgement.verdict = if required { Verdict::Broken } else { Verdict::Note };
            judgement.cause = Some(finding.cause.unwrap_or(promise.cause));
            (judgement.sent, judgement.got) = (Some(finding.sent), Some(finding.got));
        }
    }
    judgement
}

/// A service that has stopped serving.
struct Gone {
    /// After which promise that was found.
    since: &'static str,
    /// How often it may still be looked at.
    looks: u32,
}

impl Gone {
    /// Whether it serves again: whoever looks after it may have started it anew.
    fn is_back(&mut self, lab: &mut Lab) -> bool {
        if self.looks == 0 {
            return false;
        }
        let back = still_serves(lab, 1);
        self.looks -= 1;
        matches!(back, Ok(true))
    }

    fn note(&self) -> String {
        format!("the service has not answered since {}", self.since)
    }
}

/// Whether a new connection is served.
fn still_serves(lab: &mut Lab, tries: u32) -> Result<bool, Stop> {
    let patience = lab.patience;
    let mut outcome = Err(Trouble::unjudged(""));
    for number in 1..=tries {
        lab.patience = patience * number;
        outcome = lab.serves();
        lab.patience = patience;
        lab.clear()?;
        if !matches!(outcome, Err(Trouble::Broken(_))) {
            break;
        }
    }
    match outcome {
        Err(Trouble::Stop(stop)) => Err(stop),
        Err(Trouble::Broken(_)) => Ok(false),
        _ => Ok(true),
    }
}

/// Sees whether the service still serves after a promise was tried, and starts it again if it can and must.
fn look_after(
    service: &mut Option<Service>,
    lab: &mut Lab,
    judgement: Judgement,
    config: &Config,
    stop: &mut Option<Stop>,
    gone: &mut Option<Gone>,
) -> anyhow::Result<Judgement> {
    let ends_early = config.profile.is_some_and(Profile::ends_early);
    let look = || -> anyhow::Result<Result<Option<String>, Stop>> {
        let mut note = None;
        let is_stream = !matches!(lab.endpoint, Endpoint::Udp(_));
        if is_stream && !ends_early && lab.is_echo {
            match still_serves(lab, TRIES) {
                Ok(true) => {
                    *gone = None;
                    return Ok(Ok(None));
                }
                Ok(false) if service.is_some() => {
                    note = Some("afterwards the service no longer answered; it was restarted".to_owned());
                }
                Ok(false) => {
                    *gone = Some(Gone { since: judgement.id, looks: LOOKS });
                    return Ok(Ok(Some("afterwards the service no longer answered".to_owned())));
                }
                Err(ended) => return Ok(Err(ended)),
            }
        }
        if let Some(service) = service {
            match service.has_left(lab) {
                Ok(Some(status)) => note = Some(format!("the service exited ({status}) and was restarted")),
                Ok(None) => {}
                Err(ended) => return Ok(Err(ended)),
            }
        }
        if let (Some(service), Some(_)) = (service, &note) {
            if let Err(ended) = service.restart(lab)? {
                return Ok(Err(ended));
            }
            lab.pid = Some(service.pid());
        }
        Ok(Ok(note))
    };
    match look()? {
        Err(ended) => {
            *stop = Some(ended);
            Ok(judgement)
        }
        Ok(None) => Ok(judgement),
        // A server of one connection has done what it promised.
        Ok(Some(_)) if ends_early => Ok(judgement),
        Ok(note) => {
            let verdict = if judgement.required { Verdict::Broken } else { Verdict::Note };
            Ok(Judgement { verdict, note, ..judgement })
        }
    }
}
