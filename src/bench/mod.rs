//! The load generator: many connections, every byte verified, honest latency.
//!
//! One thread drives all connections on the server's own event loop, as another protocol. In the order in which it is best
//! read:
//!
//! - `config` is what can be asked for, and `machine` what is needed of the world: sockets, a poll, signals;
//! - `driver` is the loop: it opens the connections, makes the load for a while, and ends in any case;
//! - `load` is the connections and what they send and receive, over streams or datagrams (`link`); `schedule` is when
//!   messages are due, `payload` the bytes;
//! - `ledger` is the account: what became of each message that was due. Every figure comes from it;
//! - `verdict` and `search` are what follows, [`report`] is what others see of it.

mod clock;
mod config;
mod criterion;
mod dial;
mod driver;
mod latency;
pub mod ledger;
mod link;
pub mod load;
mod machine;
mod merge;
mod payload;
mod progress;
mod record;
pub mod report;
pub mod schedule;
mod search;
#[cfg(test)]
mod simulation;
mod stalls;
mod summary;
mod verdict;
mod watch;

use std::time::{Duration, SystemTime};

use log::debug;

use clock::Nanos;
use dial::Route;
use driver::{Driver, Outcome, Pace};
use ledger::Tally;
use machine::{Machine, World};
use progress::Progress;
use watch::{Precision, Usage, Watch};

use crate::build::Build;
use crate::reactor::Poller;
use crate::signals::StopSignals;

pub use config::Config;
pub use criterion::Criterion;
pub use dial::{Family, Sources};
pub use latency::Latency;
pub use merge::merge;
pub use payload::{Cause, Mismatch};
pub use summary::{
    Backend, Connections, Cut, Datagrams, ErrorCount, ErrorKind, Generator, Host, Interval, Limit, Messages, NeverSent,
    Outcomes, Part, RateKept, Run, Search, Settings, Step, Verdict, Watched,
};

/// Makes the load, and returns what came of it, with what `prepare` has returned: that is called before anything else,
/// and may wait as long as it likes, for signals are taken over by then. Shows its progress if standard error is a
/// terminal. SIGINT and SIGTERM end the run before its time; a second one ends the waiting for the last replies.
///
/// # Errors
///
/// If no connection can be had, or what is asked for is more than the limits of this machine allow.
pub fn run<T>(config: &Config, prepare: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Run, T)> {
    let loop_parts = machine::take_signals(config)?;
    let prepared = prepare()?;
    let sources = config.sources.clone().unwrap_or_default();
    let run = run_over(config, loop_parts, dial::routes(&config.address, config.family(), &sources)?)?;
    Ok((run, prepared))
}

/// The same, over routes that have been found.
fn run_over(config: &Config, loop_parts: (Poller, StopSignals), routes: Vec<Route>) -> anyhow::Result<Run> {
    let watch = config.watch_pid.map(|pid| Watch::new(pid, &routes)).transpose()?;
    for route in &routes {
        debug!("{} is {}", config.address, route.target);
    }
    let machine = Machine::new(config, loop_parts, routes)?;
    let (datagrams, max_closing, open_files) =
        (machine.is_datagrams(), machine.max_closing(config), machine.open_files);
    let mut driver = Driver::new(config, machine, datagrams, max_closing, Progress::new()?);
    driver.watch = watch;
    let opened = open(&mut driver)?;
    let (outcome, search) = match &config.find_rate {
        Some(criterion) => {
            let (outcome, search) = search::search(&mut driver, config, criterion)?;
            (outcome, Some(search))
        }
        None => (driver.stage(&Pace::of(config))?, None),
    };
    driver.progress.finish();
    driver.look_for_the_end();
    let mut run = assemble(config, &driver, opened, outcome, search);
    run.host = Host::here(open_files);
    Ok(run)
}

/// What is known when the connections are open.
struct Opened {
    started: SystemTime,
    began: Nanos,
    opening: Duration,
    belated: Option<String>,
    watched: Option<(Usage, Usage)>,
    busy: u64,
    idle: u64,
}

/// Opens the connections, and waits until it is time to begin.
fn open<W: World>(driver: &mut Driver<W>) -> anyhow::Result<Opened> {
    let before = driver.look(Precision::Exact);
    let started = SystemTime::now();
    let began = driver.load_mut().clock.read();
    let opening = driver.open_all()?;
    let belated = driver.await_start()?;
    let connected = driver.look(Precision::Exact);
    let (busy, idle) = (driver.load().open(), driver.load().open_idle());
    Ok(Opened { started, began, opening, belated, watched: before.zip(connected), busy, idle })
}

/// Puts together what is known of a run.
fn assemble<W: World>(
    config: &Config,
    driver: &Driver<W>,
    opened: Opened,
    outcome: Outcome,
    search: Option<Search>,
) -> Run {
    let Opened { started, began, opening, belated, watched: used, busy, idle } = opened;
    let time = |at: Nanos| {
        summary::timestamp(started + Duration::from_nanos(at.saturating_sub(began))).unwrap_or_else(summary::no_time)
    };
    let mut warnings = verdict::warnings(config, &outcome);
    warnings.extend(search.as_ref().and_then(verdict::limited_search));
    warnings.extend(belated);
    if let Some(watch) = driver.watch.as_ref().filter(|watch| watch.ended) {
        warnings.push(format!("process {} ended before the run did: what it used is told up to then", watch.pid));
    }
    let explains = verdict::explained(config, &outcome);
    let rate_kept = verdict::rate(&outcome);
    let Outcome { mut ledger, errors, cut, stalls, cpu, watched, asked: _, idle: _, abandoned: _ } = outcome;
    let messages = ledger.messages();
    let watched = watched.zip(used).map(|((began, ended), (before, connected))| {
        let used = ended.cpu.saturating_sub(began.cpu);
        let grown = connected.resident as f64 - before.resident as f64;
        Watched {
            pid: config.watch_pid.unwrap_or_default(),
            cpu_seconds: used.as_secs_f64(),
            cpu_us_per_message: used.as_secs_f64() * 1e6 / messages.replies.max(1) as f64,
            resident_before: before.resident,
            resident_connected: connected.resident,
            resident_peak: driver.watch.as_ref().map_or(0, |watch| watch.peak),
            resident_per_connection: grown / (busy + idle).max(1) as f64,
        }
    });
    let (schema, version, echoloop) = Run::marks();
    let record = &driver.load().record;
    let backends = driver.load().backends.iter().flat_map(|backends| backends.all());
    let nothing = Tally::new();
    let backends = backends.map(|(number, greeting, connections)| {
        let Tally { replies, bytes, unanswered, response } = ledger.of_backend(number).unwrap_or(&nothing);
        Backend {
            greeting: greeting.to_owned(),
            connections,
            replies: *replies,
            bytes: *bytes,
            unanswered: *unanswered,
            response: Latency::from(response),
        }
    });
    let backends = backends.collect();
    Run {
        schema,
        version,
        echoloop,
        build: Some(Build::this()),
        id: summary::identity(),
        name: config.name.clone().unwrap_or_else(|| config.address.to_string()),
        started: summary::timestamp(started).unwrap_or_else(summary::no_time),
        measured_from: time(ledger.from()),
        measured_to: time(ledger.to()),
        merged: 1,
        parts: Vec::new(),
        interrupted: cut == Some(Cut::Interrupted),
        cut,
        addresses: driver.world.addresses(),
        config: config.settings(),
        host: Host::here(None),
        connections: Connections {
            asked: config.connections as u64,
            opened: busy,
            idle_asked: config.idle as u64,
            idle_opened: idle,
            opening_seconds: opening.as_secs_f64(),
            reopened: record.reopened,
            connect: Latency::from(&record.connect),
            closing: (!record.closing.is_empty()).then(|| Latency::from(&record.closing)),
            never_closed: record.never_closed,
            still_closing: driver.load().still_closing(),
        },
        seconds: ledger.seconds(),
        rate: ledger.rate(),
        bytes_per_second: ledger.bytes_per_second(),
        messages,
        outcomes: ledger.outcomes,
        rate_kept,
        response: Latency::from(ledger.response()),
        service: ledger.service().map(Latency::from),
        backends,
        datagrams: driver.link.may_lose().then_some(Datagrams {
            lost: messages.unanswered,
            reordered: ledger.reordered,
            duplicates: ledger.duplicates,
        }),
        generator: Generator {
            cpu_seconds: cpu.as_secs_f64(),
            late: ledger.late(),
            lateness: ledger.lateness().map(Latency::from),
            stalls: Some(Latency::from(stalls.gaps())),
            explains,
            warnings,
        },
        timeline: ledger.take_timeline(),
        errors: errors.into_values().collect(),
        mismatches: record.mismatches.clone(),
        watched,
        search,
        criteria: Vec::new(),
    }
}
