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

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use indicatif::HumanCount;
use signal_hook::low_level::signal_name;

use crate::count::counted;
use crate::reactor::address::{Address, DEFAULT, Endpoint};
use crate::{escape, limits, stdio, values};
use catalogue::{About, Promise};
use exec::Service;
use lab::Lab;
pub use report::{Judgement, Report, Verdict, lessons, schema};
use verdict::Stop;
use verdict::Trouble;

/// How often a promise is tried before it is said to be broken by something that time decides.
const TRIES: u32 = 2;

/// What is to be checked, and how.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Check HOST:PORT, udp:HOST:PORT or unix:PATH. PORT alone is on 127.0.0.1 [default: 127.0.0.1:7777; with --exec,
    /// its port]
    #[arg(value_name = "ADDR", value_parser = values::destination)]
    pub address: Option<Address>,

    /// Connections at once. So many are opened where many are tried
    #[arg(help_heading = "How", short, long, value_name = "N", default_value_t = 100, value_parser = values::whole::<u32>(2..=100_000))]
    pub connections: u32,

    /// Expect a connection to close after the line WORD. That is judged too
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

    /// Require these promises or groups. Others that are broken are noted [default: all]
    #[arg(help_heading = "What is judged", long, value_name = "LIST", value_delimiter = ',', value_parser = promise)]
    pub require: Vec<String>,

    /// Wait DUR for what must come. What does not come is tried again with twice as much
    #[arg(help_heading = "How", long, value_name = "DUR", default_value = "1s", value_parser = values::positive_duration)]
    pub timeout: Duration,

    /// Judge for at most DUR in all. What has not been judged by then has not passed
    #[arg(help_heading = "How", long, value_name = "DUR", default_value = "30s", value_parser = values::positive_duration)]
    pub max_time: Duration,

    /// Watch the service's process, too: memory, CPU. Its children are included; its memory, descriptors and CPU time
    /// are judged. On this machine, on Linux
    #[arg(help_heading = "How", long, value_name = "PID", value_parser = values::whole::<i32>(1..=i32::MAX as u64))]
    pub pid: Option<i32>,

    /// Start the service with shell command CMD. In it, {port} stands for a free port; check waits until the service
    /// listens, and ends it afterwards. If it exits by itself it is started again
    #[arg(help_heading = "How", long, value_name = "CMD", value_parser = command, conflicts_with = "pid")]
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
    /// A server of one message
    #[value(name = "tutorial-1")]
    Tutorial1,
    /// A server of one connection, until a word
    #[value(name = "tutorial-2")]
    Tutorial2,
    /// A server of many connections
    #[value(name = "tutorial-3")]
    Tutorial3,
    /// Through a proxy, a balancer, a mesh
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

fn command(text: &str) -> Result<String, String> {
    if text.contains("{port}") {
        Ok(text.to_owned())
    } else {
        Err("it does not say where the port goes: write it as in 'python3 server.py {port}'".to_owned())
    }
}

impl Config {
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
    limits::raise_open_files();
    for path in [&config.json, &config.junit].into_iter().flatten().filter(|path| path.as_os_str() != "-") {
        let opened = OpenOptions::new().append(true).create(true).open(path);
        opened.with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut service = match &config.exec {
        Some(template) => Some(Service::start(template, matches!(config.address, Some(Address::Udp(_))))?),
        None => None,
    };
    let address = match (&config.address, &service) {
        (Some(Address::Udp(_)), Some(service)) => format!("udp:127.0.0.1:{}", service.port).parse()?,
        (Some(address), _) => address.clone(),
        (None, Some(service)) => format!("127.0.0.1:{}", service.port).parse()?,
        (None, None) => DEFAULT.parse()?,
    };
    let endpoint = address.resolve().with_context(|| format!("cannot resolve {address}"))?.swap_remove(0);
    let selected = config.selected(&endpoint);
    if selected.is_empty() {
        bail!("nothing is left to judge of {address}: look at --only, --skip and --profile");
    }
    let prints =
        [&config.json, &config.junit].iter().all(|path| path.as_ref().is_none_or(|path| path.as_os_str() != "-"));
    let print = |text: String| if prints { stdio::print(text) } else { Ok(()) };
    print(announcement(&address, &endpoint, config))?;
    let began = Instant::now();
    let mut lab = Lab::new(endpoint, config.timeout, began + config.max_time)?;
    lab.many = config.connections as usize;
    lab.terminator = config.terminator();
    lab.pid = config.pid.or(service.as_ref().map(Service::pid));
    let mut report = Report::new(address.to_string());
    let mut stop = None;
    for promise in selected {
        let judgement = match stop {
            Some(stop) => not_judged(promise, config.requires(promise), &why(stop)),
            None => judge(&mut lab, promise, config, &mut stop, report.judgements.is_empty()),
        };
        let judgement = match &mut service {
            Some(service) if stop.is_none() => look_after(service, &mut lab, judgement, config)?,
            _ => judgement,
        };
        lab.outside(|| print(judgement.line()))?;
        report.judgements.push(judgement);
    }
    drop(service);
    report.seconds = began.elapsed().as_secs_f64();
    let (streams, datagrams) = (*lab.reactor.counters(), *lab.datagrams.counters());
    report.connections = streams.opened;
    report.sent_bytes = streams.sent_bytes + datagrams.sent_bytes;
    report.received_bytes = streams.received_bytes + datagrams.received_bytes;
    report.ended_early = stop.map(why);
    lab.outside(|| print(report.summary()))?;
    lab.outside(|| deliver(&report, config))?;
    Ok(match stop {
        Some(Stop::Signal(signal)) => 128 + u8::try_from(signal)?,
        _ => u8::from(!report.passes()),
    })
}

/// What is going to be done, at most.
fn announcement(address: &Address, endpoint: &Endpoint, config: &Config) -> String {
    let address = escape::text(&address.to_string()).to_string();
    let (many, times) = (config.connections as usize, TRIES as usize);
    match endpoint {
        Endpoint::Udp(_) => {
            format!("checking {address}: at most {} of datagrams, nothing else\n", ByteSize::mib(4).display().iec())
        }
        _ => format!(
            "checking {address}: at most {}, {} of them at once, and {} each way; nothing else\n",
            counted((streams::RETURNED + 4 * many + 400) * times, "connection"),
            HumanCount(many.max(100) as u64),
            ByteSize(((4 * streams::UNBOUNDED + streams::FED + (64 << 20)) * times) as u64).display().iec()
        ),
    }
}

fn why(stop: Stop) -> String {
    match stop {
        Stop::Signal(signal) => format!("{} ended the check", signal_name(signal).unwrap_or("a signal")),
        Stop::Time => "the time for the check (--max-time) was over".to_owned(),
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
        judgement.note = Some("nothing comes back at all".to_owned());
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
            lab.silent |= is_first && finding.sent == "a connect";
            judgement.verdict = if required { Verdict::Broken } else { Verdict::Note };
            judgement.cause = Some(finding.cause.unwrap_or(promise.cause));
            (judgement.sent, judgement.got) = (Some(finding.sent), Some(finding.got));
        }
    }
    judgement
}

/// Sees whether the service is still there, and starts it again if not.
fn look_after(
    service: &mut Service,
    lab: &mut Lab,
    judgement: Judgement,
    config: &Config,
) -> anyhow::Result<Judgement> {
    let Some(status) = lab.outside(|| service.has_left()) else { return Ok(judgement) };
    lab.outside(|| service.restart())?;
    lab.pid = Some(service.pid());
    if config.profile.is_some_and(Profile::ends_early) {
        return Ok(judgement);
    }
    let verdict = if judgement.required { Verdict::Broken } else { Verdict::Note };
    let note = format!("the service has ended meanwhile: {status}; it was started again");
    Ok(Judgement { verdict, note: Some(note), ..judgement })
}

fn deliver(report: &Report, config: &Config) -> anyhow::Result<()> {
    let json = || serde_json::to_string_pretty(report).map(|text| escape::json(&text).into_owned() + "\n");
    for (path, text) in [(&config.json, json()?), (&config.junit, report.junit())] {
        match path {
            Some(path) if path.as_os_str() == "-" => stdio::print(text)?,
            Some(path) => std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?,
            None => {}
        }
    }
    Ok(())
}
