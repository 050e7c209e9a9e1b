//! The load generator: many connections, every byte verified, honest latency.
//!
//! One thread drives all connections on the server's own event loop, as another protocol: [`client`](self) sends and
//! checks, [`pace`](self) says when. The driver here opens the connections, keeps the schedule, watches the time and
//! the signals, and sums up. It does not know what reports look like.

mod client;
mod criterion;
mod dial;
mod latency;
mod link;
mod merge;
mod pace;
mod payload;
mod record;
pub mod report;
mod summary;
mod watch;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::limits;
use crate::reactor::Poller;
use crate::reactor::address::{Address, Endpoint};
use crate::signals::{self, Request, StopSignals};
use client::{LONGEST_DATAGRAM, Load, Nanos, Stage, Traffic};
use criterion::Figures;
use dial::Route;
use latency::{micros, show_micros};
use link::Link;
use pace::{Bracket, Schedule};
use record::Window;
use watch::{Precision, Usage, Watch};

pub use criterion::Criterion;
pub use dial::{Family, Sources};
pub use latency::Latency;
pub use merge::merge;
pub use payload::{Cause, Mismatch};
pub use summary::{
    Connections, Datagrams, ErrorCount, ErrorKind, Generator, Host, Interval, Messages, Part, Run, Search, Settings,
    Step, Verdict, Watched,
};

/// Connections that are being opened at once.
const OPENING: usize = 512;

/// Messages of the schedule that are sent before the sockets are looked at again.
const BURST: usize = 1024;

/// How often timeouts are looked for and the progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// The length of the timeline's intervals.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a place waits before it tries again to open a connection that failed.
const RETRY: Duration = Duration::from_millis(100);

/// How long to wait when the backlog of a Unix listener is full.
const BACKLOG_FULL: Duration = Duration::from_millis(2);

/// The most datagrams in flight on each socket in a closed loop. More would not find room where they are received, and
/// be lost there.
const MOST_DATAGRAMS: u64 = 64;

/// The rate at which a search begins, unless it is told another.
const FIRST_RATE: f64 = 1000.0;

/// The shortest and the longest step of a search.
const STEP: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// The part of the messages that may be late, or missing, before a rate counts as not kept.
const TOLERANCE: f64 = 0.01;

/// Messages that may be missing in any case: of a handful, the one that is on its way at the end is many percent.
const FEW: f64 = 3.0;

/// What load to make.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whom to load.
    pub address: Address,
    /// Connections that carry messages.
    pub connections: usize,
    /// Connections that are held open and silent.
    pub idle: usize,
    /// Connections opened per second; `None`: as fast as it goes.
    pub connect_rate: Option<f64>,
    /// The smallest and the largest message in bytes.
    pub size: (u64, u64),
    /// Messages in flight per connection, in a closed loop.
    pub depth: u64,
    /// An open loop with so many messages per second; `None`: a closed loop.
    pub rate: Option<f64>,
    /// The longest that the measured window may be.
    pub duration: Option<Duration>,
    /// The most messages that are sent in the measured window.
    pub messages: Option<u64>,
    /// With all connections open, wait until then before any load.
    pub start_at: Option<SystemTime>,
    /// How long there is load before the measured window.
    pub warm_up: Duration,
    /// Look for the highest rate at which this holds.
    pub find_rate: Option<Criterion>,
    /// Close and reopen a connection after so many messages.
    pub reconnect: Option<u64>,
    /// Local addresses to dial from.
    pub sources: Sources,
    /// Which of a name's addresses to dial.
    pub family: Family,
    /// Dial all addresses of a name in turn, and not only the first that answers.
    pub all_addresses: bool,
    /// When a reply or a connect is given up.
    pub timeout: Duration,
    /// What sizes and bytes are made from.
    pub seed: u64,
    /// How long to spin before sleeping in the poll.
    pub busy_poll: Duration,
    /// A process to watch.
    pub watch_pid: Option<i32>,
    /// What to call the run.
    pub name: Option<String>,
}

/// Makes the load, and returns what came of it. Shows its progress if standard error is a terminal. SIGINT and SIGTERM
/// end the run before its time; a second one ends the process.
///
/// # Errors
///
/// If no connection can be had, or what is asked for is more than the limits of this machine allow.
pub fn run(config: &Config) -> anyhow::Result<Run> {
    run_over(config, dial::routes(&config.address, config.family, &config.sources)?)
}

/// The same, over routes that have been found.
fn run_over(config: &Config, routes: Vec<Route>) -> anyhow::Result<Run> {
    let mut watch = config.watch_pid.map(|pid| Watch::new(pid, &routes)).transpose()?;
    let before = watch.as_mut().map(|watch| watch.look(Precision::Exact));
    let mut driver = Driver::new(config, routes, watch)?;
    let started = SystemTime::now();
    let began = driver.load_mut().clock.read();
    let opening = driver.open_all()?;
    let belated = driver.await_start()?;
    let connected = driver.look(Precision::Exact);
    let (idle, busy) = (driver.load().open_idle(), driver.load().open());
    let (outcome, search) = match &config.find_rate {
        Some(criterion) => {
            let (outcome, search) = driver.search(criterion)?;
            (outcome, Some(search))
        }
        None => (driver.stage(&Pace::of(config))?, None),
    };
    driver.progress.finish_and_clear();
    // A process that is killed loses its connections first, and is seen to have ended a moment later.
    for _ in 0..if driver.deserted { 20 } else { 0 } {
        driver.look(Precision::Rough);
        if driver.watch.as_ref().is_some_and(|watch| !watch.ended) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let (schema, version, echoloop) = Run::marks();
    let load = driver.load();
    let Outcome { window, errors, cpu, watched } = outcome;
    let seconds = window.seconds();
    let time =
        |at: Nanos| summary::timestamp(started + Duration::from_nanos(at.saturating_sub(began))).unwrap_or_default();
    let (measured_from, measured_to) = (time(window.from()), time(window.from() + (seconds * 1e9) as Nanos));
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let watched = watched.zip(before).zip(connected).map(|(((began, ended), before), connected)| {
        let used = ended.cpu.saturating_sub(began.cpu);
        let grown = connected.resident as f64 - before.resident as f64;
        Watched {
            pid: config.watch_pid.unwrap_or_default(),
            cpu_seconds: used.as_secs_f64(),
            cpu_us_per_message: used.as_secs_f64() * 1e6 / window.messages.replies.max(1) as f64,
            resident_before: before.resident,
            resident_connected: connected.resident,
            resident_peak: driver.watch.as_ref().map_or(0, |watch| watch.peak),
            resident_per_connection: grown / (busy + idle).max(1) as f64,
        }
    });
    let mut warnings = warnings(config, &window, cpu);
    warnings.extend(search.as_ref().and_then(limited_search));
    warnings.extend(belated);
    if let Some(watch) = driver.watch.as_ref().filter(|watch| watch.ended) {
        warnings.push(format!("process {} ended before the run did: what it used is told up to then", watch.pid));
    }
    Ok(Run {
        schema,
        version,
        echoloop,
        id: summary::identity(),
        name: config.name.clone().unwrap_or_else(|| config.address.to_string()),
        started: summary::timestamp(started).unwrap_or_default(),
        measured_from,
        measured_to,
        merged: 1,
        parts: Vec::new(),
        interrupted: driver.interrupted,
        addresses: driver.routes.iter().map(|route| route.target.to_string()).collect(),
        config: config.settings(),
        host: Host::here(driver.open_files),
        connections: Connections {
            asked: config.connections as u64,
            opened: busy,
            idle_asked: config.idle as u64,
            idle_opened: idle,
            opening_seconds: opening.as_secs_f64(),
            reopened: load.record.reopened,
            connect: Latency::from(&load.record.connect),
        },
        seconds,
        rate: per_second(window.messages.replies),
        bytes_per_second: per_second(window.messages.bytes),
        messages: window.messages,
        response: Latency::from(&window.response),
        service: window.service.as_ref().map(Latency::from),
        datagrams: matches!(driver.routes[0].target, Endpoint::Udp(_)).then_some(Datagrams {
            lost: window.messages.unanswered,
            reordered: window.reordered,
            duplicates: window.duplicates,
        }),
        timeline: window.timeline,
        errors: errors.into_values().collect(),
        mismatches: load.record.mismatches.clone(),
        generator: Generator { cpu_seconds: cpu.as_secs_f64(), late: window.late, warnings },
        watched,
        search,
        criteria: Vec::new(),
    })
}

/// Where the generator itself may have been the limit.
fn warnings(config: &Config, window: &Window, cpu: Duration) -> Vec<String> {
    let mut warnings = Vec::new();
    let share = cpu.as_secs_f64() / window.seconds().max(1e-9);
    let spins = !config.busy_poll.is_zero() || window.service.is_some();
    // A run that was over before it began says nothing.
    let began = window.seconds() >= TICK.as_secs_f64();
    if share > 0.95 && began && !spins {
        warnings.push(format!(
            "the generator used {:.0} % of a core, so it may have been the limit, and not the server: share the load \
             among several processes, and add up what they report (echoloop report --merge)",
            share * 100.0
        ));
    }
    let late = window.late as f64 / window.messages.sent.max(1) as f64;
    if late > TOLERANCE {
        warnings.push(format!(
            "the schedule slipped: {:.1} % of the messages left more than 1 ms after they were due, with their \
             connections free, so the generator, and not the server, was slow",
            late * 100.0
        ));
    }
    warnings
}

/// Whether a search ended where the generator was slow, and not only the server.
fn limited_search(search: &Search) -> Option<String> {
    let end = search.fails_at?;
    let late = search.steps.iter().filter(|step| step.rate == end).all(|step| step.late > 0);
    late.then(|| {
        format!(
            "at {}/s the generator itself was late with some messages, so the server may hold more than was found",
            HumanCount(end as u64)
        )
    })
}

impl Config {
    fn settings(&self) -> Settings {
        Settings {
            address: self.address.to_string(),
            connections: self.connections as u64,
            idle: self.idle as u64,
            connect_rate: self.connect_rate,
            smallest: self.size.0,
            largest: self.size.1,
            depth: self.depth,
            rate: self.rate,
            duration: self.duration.map(|duration| duration.as_secs_f64()),
            messages: self.messages,
            warm_up: self.warm_up.as_secs_f64(),
            reconnect: self.reconnect,
            sources: self.sources.addresses().iter().map(ToString::to_string).collect(),
            timeout: self.timeout.as_secs_f64(),
            seed: self.seed,
            busy_poll: self.busy_poll.as_secs_f64(),
        }
    }
}

/// One stretch of load.
struct Pace {
    rate: Option<f64>,
    warm_up: Duration,
    duration: Option<Duration>,
    messages: Option<u64>,
}

impl Pace {
    fn of(config: &Config) -> Self {
        Pace { rate: config.rate, warm_up: config.warm_up, duration: config.duration, messages: config.messages }
    }
}

/// What came of one stretch of load.
struct Outcome {
    window: Window,
    errors: BTreeMap<ErrorKind, ErrorCount>,
    /// Processor time that the generator used in the window.
    cpu: Duration,
    /// What the watched process had used at the window's beginning and at its end.
    watched: Option<(Usage, Usage)>,
}

/// The loop around the load.
struct Driver<'a> {
    config: &'a Config,
    /// Where connections go to, each place to one of these.
    routes: Vec<Route>,
    open_files: Option<u64>,
    poller: Poller,
    signals: StopSignals,
    link: Link,
    /// Places to open connections for, each not before its time.
    to_open: BinaryHeap<Reverse<(Nanos, u32)>>,
    dialled: usize,
    /// Since when the listener's backlog has been full.
    full_since: Option<Nanos>,
    /// Since when there has been no connection.
    alone_since: Option<Nanos>,
    /// No connection is left, and none will come, or none has come for as long as is waited for anything.
    deserted: bool,
    interrupted: bool,
    next_tick: Nanos,
    next_interval: Option<Nanos>,
    /// The process that is watched.
    watch: Option<Watch>,
    progress: ProgressBar,
}

impl<'a> Driver<'a> {
    fn new(config: &'a Config, routes: Vec<Route>, watch: Option<Watch>) -> anyhow::Result<Self> {
        let open_files = limits::raise_open_files();
        check_target(config, &routes[0].target)?;
        let routes = match routes[0].target {
            Endpoint::Udp(_) if routes.len() > 1 && !config.all_addresses => {
                let cannot = || format!("cannot send to {}", config.address);
                vec![dial::answering(routes, config.timeout).with_context(cannot)?]
            }
            _ => routes,
        };
        let poller = Poller::new(config.busy_poll).context("cannot make a poll")?;
        let signals = StopSignals::new(poller.registry())?;
        signals.watch(true);
        let all = config.connections + config.idle;
        dial::check_descriptors(all, limits::room(open_files), open_files)?;
        let each = if config.all_addresses { all.div_ceil(routes.len()) } else { all };
        for route in routes.iter().filter(|route| !matches!(route.target, Endpoint::Unix(_))) {
            dial::check_ports(each, &route.sources)?;
        }
        let load = Load::new(config.seed, config.size, config.depth, config.reconnect, config.connections, config.idle);
        Ok(Driver {
            config,
            link: Link::new(&routes[0].target, load),
            routes,
            open_files,
            poller,
            signals,
            to_open: BinaryHeap::new(),
            dialled: 0,
            full_since: None,
            alone_since: None,
            deserted: false,
            interrupted: false,
            next_tick: 0,
            next_interval: None,
            watch,
            progress: ProgressBar::new(0).with_style(
                ProgressStyle::with_template("{prefix:>10} {bar:24} {msg}").expect("the template is valid"),
            ),
        })
    }

    fn load(&self) -> &Load {
        self.link.load()
    }

    fn load_mut(&mut self) -> &mut Load {
        self.link.load_mut()
    }

    /// Opens a connection for every place. Returns how long that took.
    fn open_all(&mut self) -> anyhow::Result<Duration> {
        let begin = self.load_mut().clock.read();
        let interval = self.config.connect_rate.map_or(0.0, |rate| 1e9 / rate);
        let places = self.load().places.len();
        self.progress.set_prefix("connecting");
        self.progress.set_length(places as u64);
        let settled = if self.routes.len() > 1 && !self.config.all_addresses { self.settle()? } else { 0 };
        for index in settled..places {
            self.to_open.push(Reverse((begin + (index as f64 * interval) as Nanos, index as u32)));
        }
        self.name_addresses();
        self.await_connections()?;
        if self.link.is_empty() && !self.interrupted {
            bail!(
                "cannot connect to {}: {} (all {} attempts)",
                self.config.address,
                self.first_error(),
                HumanCount(places as u64)
            );
        }
        let end = self.load_mut().clock.read();
        Ok(Duration::from_nanos(end - begin))
    }

    /// Of several routes takes the first over which a connection can be opened. That connection is the first place's, so
    /// finding out costs the server none. Returns how many places have theirs.
    fn settle(&mut self) -> anyhow::Result<usize> {
        let mut failures = Vec::new();
        for route in std::mem::take(&mut self.routes) {
            (self.routes, self.dialled) = (vec![route], 0);
            let now = self.load_mut().clock.read();
            self.to_open.push(Reverse((now, 0)));
            self.await_connections()?;
            // That a route leads nowhere ends the run no more than it is an error of it.
            (self.deserted, self.alone_since) = (false, None);
            if !self.link.is_empty() || self.interrupted {
                return Ok(1);
            }
            let cause = self.first_error();
            self.load_mut().record.errors.clear();
            failures.push(format!("{}: {cause}", self.routes[0].target));
        }
        bail!("cannot connect to {}: {}", self.config.address, failures.join("; "))
    }

    /// Has errors name the address, where it is not the one that was asked for.
    fn name_addresses(&mut self) {
        let addresses: Vec<_> = self.routes.iter().map(|route| route.target.to_string()).collect();
        if addresses != [self.config.address.to_string()] {
            self.load_mut().addresses = addresses;
        }
    }

    fn first_error(&self) -> String {
        let first = self.load().record.errors.values().next();
        first.map_or("no reason is known".to_owned(), |error| error.first.clone())
    }

    /// Waits until it is time to begin. If that has passed already, returns a warning.
    fn await_start(&mut self) -> anyhow::Result<Option<String>> {
        let Some(start) = self.config.start_at else { return Ok(None) };
        let left = || start.duration_since(SystemTime::now());
        if let Err(passed) = left() {
            let late = passed.duration().as_secs_f64();
            return Ok(Some(format!("the connections were open {late:.1} s after the time to start (--start-at)")));
        }
        self.progress.set_prefix("waiting");
        while let Ok(left) = left()
            && !self.is_over()
        {
            let now = self.load_mut().clock.read();
            self.step(Some(now + nanos(left)))?;
        }
        Ok(None)
    }

    fn await_connections(&mut self) -> anyhow::Result<()> {
        while (!self.to_open.is_empty() || self.load().connecting > 0) && !self.interrupted {
            self.step(None)?;
        }
        Ok(())
    }

    /// Makes load for a while, and measures it.
    fn stage(&mut self, pace: &Pace) -> anyhow::Result<Outcome> {
        let mut now = self.load_mut().clock.read();
        let traffic = pace.rate.map_or(Traffic::Closed, |rate| Traffic::Open(Schedule::new(now, rate)));
        self.load_mut().start(traffic);
        self.count_the_living();
        let from = now + nanos(pace.warm_up);
        if from > now {
            self.progress.set_prefix("warming up");
            self.feed_all();
        }
        while now < from && !self.is_over() {
            self.step(Some(from))?;
            now = self.load_mut().clock.read();
        }

        let cpu = processor_time();
        let usage = self.look(Precision::Children);
        // What was due before is not of the window.
        while let Some(index) = self.load_mut().take_due(now - 1) {
            self.feed(index);
        }
        self.load_mut().record.open_window(now, pace.rate.is_some());
        self.load_mut().limit(pace.messages);
        self.feed_all();
        self.next_interval = Some(now + nanos(INTERVAL));
        let end = pace.duration.map(|duration| now + nanos(duration));
        self.progress.set_prefix("measuring");
        self.progress
            .set_length(pace.duration.map_or(pace.messages.unwrap_or(0), |duration| duration.as_millis() as u64));
        while end.is_none_or(|end| now < end) && !self.load().is_exhausted() && !self.is_over() {
            self.step(end)?;
            now = self.load_mut().clock.read();
        }
        let cpu = processor_time() - cpu;
        let watched = usage.zip(self.look(Precision::Children));
        self.next_interval = None;

        // What fell due while the last turn was running is sent still; more than that is missed like the rest.
        self.send_due(now);
        while self.load_mut().take_due(now).is_some() {}
        let missed = self.load_mut().stop();
        self.load_mut().record.close_window(now, missed);
        self.progress.set_prefix("last ones");
        while self.load().in_flight > 0 && !self.deserted {
            self.step(None)?;
        }
        let load = self.load_mut();
        let open = load.open();
        let window = load.record.take_window(open).context("the window was not opened")?;
        let errors = std::mem::take(&mut load.record.errors);
        Ok(Outcome { window, errors, cpu, watched })
    }

    /// Looks for the highest rate at which `criterion` holds. Returns what was measured at it.
    fn search(&mut self, criterion: &Criterion) -> anyhow::Result<(Outcome, Search)> {
        let mut bracket = Bracket::new(self.config.rate.unwrap_or(FIRST_RATE));
        let mut steps: Vec<Step> = Vec::new();
        let mut best: Option<(bool, Outcome)> = None;
        // Wrong bytes count wherever they were seen.
        let mut wrong = BTreeMap::new();
        while let Some(rate) = bracket.next() {
            let needed = Duration::from_secs_f64((criterion.messages_needed() as f64 / rate).min(1e6));
            let duration = self.config.duration.unwrap_or(needed.clamp(STEP.0, STEP.1));
            let pace =
                Pace { rate: Some(rate), warm_up: self.config.warm_up, duration: Some(duration), messages: None };
            self.reopen_missing()?;
            let outcome = self.stage(&pace)?;
            if self.interrupted {
                best.get_or_insert((false, outcome));
                break;
            }
            let step = judge(criterion, rate, &outcome)?;
            self.progress.suspend(|| eprintln!("{}", report::step_line(&step)));
            let mismatches = [ErrorKind::Mismatch, ErrorKind::Excess];
            wrong.extend(mismatches.into_iter().filter_map(|kind| Some((kind, outcome.errors.get(&kind)?.clone()))));
            bracket.judge(step.holds);
            if step.holds || best.as_ref().is_none_or(|(held, _)| !held) {
                best = Some((step.holds, outcome));
            }
            steps.push(step);
        }
        let (_, mut outcome) = best.context("no rate was tried")?;
        outcome.errors.extend(wrong);
        let Bracket { holds, fails, .. } = bracket;
        Ok((outcome, Search { criterion: criterion.to_string(), holds_at: holds, fails_at: fails, steps }))
    }

    /// Opens connections for the places that lost theirs.
    fn reopen_missing(&mut self) -> anyhow::Result<()> {
        let now = self.load_mut().clock.read();
        let closed = self.load().places.iter().enumerate().filter(|(_, place)| place.stage == Stage::Closed);
        let closed: Vec<_> = closed.map(|(index, _)| Reverse((now, index as u32))).collect();
        self.to_open.extend(closed);
        self.await_connections()
    }

    fn is_over(&self) -> bool {
        self.interrupted || self.deserted
    }

    /// One turn of the loop, and no longer a sleep before it than until `wake`.
    fn step(&mut self, wake: Option<Nanos>) -> anyhow::Result<()> {
        let now = self.load_mut().clock.read();
        self.open_due(now);
        self.send_due(now);
        if now >= self.next_tick {
            self.tick(now)?;
        }
        if self.next_interval.is_some_and(|at| now >= at) {
            let open = self.load().open();
            self.load_mut().record.next_interval(now, open);
            self.next_interval = Some(now + nanos(INTERVAL));
        }

        let opening = self.to_open.peek().filter(|_| self.load().connecting < OPENING).map(|Reverse((at, _))| *at);
        let wakes = [wake, opening, self.load().next_due(), self.next_interval, Some(self.next_tick)];
        let wake = wakes.into_iter().flatten().min().unwrap_or(now);
        let sleep =
            self.link.sleep(self.load().clock.instant()).map_or(nap(wake, now), |sleep| sleep.min(nap(wake, now)));
        let (instant, ready) = self.poller.wait(Some(sleep))?;
        let mut signalled = false;
        self.link.load_mut().clock.set(instant);
        self.link.turn(
            instant,
            ready.filter(|readiness| {
                signalled |= readiness.token == signals::TOKEN;
                readiness.token != signals::TOKEN
            }),
        );
        if signalled {
            self.take_signals();
        }
        self.see_to_the_gone();
        self.count_the_living();
        Ok(())
    }

    /// Begins to open the connections whose time has come.
    fn open_due(&mut self, now: Nanos) {
        while self.load().connecting < OPENING
            && let Some(&Reverse((at, index))) = self.to_open.peek()
            && at <= now
        {
            self.to_open.pop();
            let route = &self.routes[index as usize % self.routes.len()];
            let number = self.dialled / self.routes.len();
            match self.link.open(index, &route.target, route.sources.nth(number), self.poller.registry()) {
                Ok(()) => self.full_since = None,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let since = *self.full_since.get_or_insert(now);
                    if now - since < nanos(self.config.timeout) {
                        self.to_open.push(Reverse((now + nanos(BACKLOG_FULL), index)));
                        return;
                    }
                    self.cannot_open(index, ErrorKind::ConnectTimeout, "the listener's backlog stays full");
                }
                Err(error) => {
                    let cause = dial::explain(&error, route, number);
                    self.cannot_open(index, client::connect_kind(&error), &cause);
                }
            }
            self.dialled += 1;
        }
    }

    fn cannot_open(&mut self, index: u32, kind: ErrorKind, cause: &str) {
        let address = self.load().addresses.get(index as usize % self.routes.len()).cloned();
        self.load_mut().record.error(kind, || match address {
            Some(address) => format!("{address}: {cause}"),
            None => cause.to_owned(),
        });
        self.load_mut().gone.push((index, true));
    }

    /// Sends what is due by the schedule.
    fn send_due(&mut self, now: Nanos) {
        for _ in 0..BURST {
            let Some(index) = self.load_mut().take_due(now) else { return };
            self.feed(index);
        }
    }

    fn feed_all(&mut self) {
        for index in 0..self.load().busy {
            self.feed(index as u32);
        }
    }

    fn feed(&mut self, index: u32) {
        if self.load().places[index as usize].stage == Stage::Open {
            self.link.feed(index);
        }
    }

    /// Does what follows from connections that are gone.
    fn see_to_the_gone(&mut self) {
        if self.load().gone.is_empty() {
            return;
        }
        let now = self.load_mut().clock.read();
        for (index, failed) in std::mem::take(&mut self.load_mut().gone) {
            if self.config.reconnect.is_some() && self.load().is_sending() {
                let pause = if failed { nanos(RETRY) } else { 0 };
                self.to_open.push(Reverse((now + pause, index)));
            }
        }
    }

    /// Notes whether there is a connection, or will be one.
    fn count_the_living(&mut self) {
        if self.load().is_alive() {
            self.alone_since = None;
            self.deserted = false;
            return;
        }
        let now = self.load_mut().clock.read();
        let since = *self.alone_since.get_or_insert(now);
        let hopeless = self.to_open.is_empty() && self.load().connecting == 0;
        self.deserted = hopeless || now - since >= nanos(self.config.timeout);
    }

    fn tick(&mut self, now: Nanos) -> anyhow::Result<()> {
        self.next_tick = now + nanos(TICK);
        self.link.expire(self.config.timeout);
        self.see_to_the_gone();
        self.look(Precision::Rough);
        self.show_progress(now);
        Ok(())
    }

    /// Looks at the process that is watched. That it has ended is no reason to end.
    fn look(&mut self, precision: Precision) -> Option<Usage> {
        self.watch.as_mut().map(|watch| watch.look(precision))
    }

    fn show_progress(&self, now: Nanos) {
        if self.progress.is_hidden() {
            return;
        }
        let load = self.load();
        let Some(window) = load.record.window() else {
            let open = load.open() + load.open_idle();
            self.progress.set_position(open);
            self.progress.set_message(format!(
                "{} connections, {} errors",
                HumanCount(open),
                HumanCount(load.record.error_count())
            ));
            return;
        };
        let elapsed = now.saturating_sub(window.from());
        let timed = self.config.duration.is_some() || self.config.find_rate.is_some();
        self.progress.set_position(if timed { elapsed / 1_000_000 } else { window.messages.replies });
        let percentile = |p| show_micros(micros(window.current.value_at_percentile(p)));
        self.progress.set_message(format!(
            "{}/s, p50 {}, p99 {}, {} connections, {} errors",
            HumanCount((window.messages.replies as f64 * 1e9 / elapsed.max(1) as f64) as u64),
            percentile(50.0),
            percentile(99.0),
            HumanCount(load.open() + load.open_idle()),
            HumanCount(load.record.error_count())
        ));
    }

    fn take_signals(&mut self) {
        match self.signals.take() {
            Some(Request::Kill(signal)) => {
                self.progress.finish_and_clear();
                std::process::exit(128 + signal);
            }
            Some(Request::Stop(_)) => {
                self.interrupted = true;
                self.progress.println("ending early; once more ends at once");
            }
            None => {}
        }
    }
}

/// Whether a rate was kept, and the criterion held.
fn judge(criterion: &Criterion, rate: f64, outcome: &Outcome) -> anyhow::Result<Step> {
    let window = &outcome.window;
    let reached = window.messages.replies as f64 / window.seconds().max(1e-9);
    let response = Latency::from(&window.response);
    let (holds, because) = criterion.judge(&Figures {
        response: &window.response,
        rate: reached,
        errors: outcome.errors.values().map(|error| error.count).sum(),
        mismatches: summary::wrong_bytes(outcome.errors.values()),
        missed: window.messages.missed,
        lost: window.messages.unanswered,
        connections: window.timeline.last().map_or(0, |interval| interval.connections),
    });
    let due = (window.messages.sent + window.messages.missed) as f64;
    let tolerated = (due * TOLERANCE).max(FEW);
    let (holds, because) = match outcome.errors.values().next() {
        Some(error) => (false, format!("{} {}: {}", error.count, error.kind, error.first)),
        None if window.messages.missed as f64 > tolerated => {
            (false, format!("{} messages could not be sent", HumanCount(window.messages.missed)))
        }
        None if due - window.messages.replies as f64 > tolerated => {
            (false, format!("{because}, and only {} replies/s came", HumanCount(reached as u64)))
        }
        None => (holds, because),
    };
    Ok(Step { rate, reached, holds, because, late: window.late, response })
}

/// Makes sure that what is asked for can be had of this kind of target.
fn check_target(config: &Config, target: &Endpoint) -> anyhow::Result<()> {
    if !matches!(target, Endpoint::Udp(_)) {
        return Ok(());
    }
    let (smallest, largest) = config.size;
    let (least, most) = (client::NUMBER as u64, LONGEST_DATAGRAM as u64);
    ensure!(
        smallest >= least && largest <= most,
        "a datagram has {least} bytes, in which it carries its number, to {most}: {smallest} to {largest} cannot be (--size)"
    );
    ensure!(
        config.depth <= MOST_DATAGRAMS,
        "{} datagrams in flight on each socket are more than there is room for where they are received: at most \
         {MOST_DATAGRAMS} (--depth)",
        config.depth
    );
    ensure!(config.reconnect.is_none(), "datagrams have no connections to close and to open again (--reconnect)");
    ensure!(config.idle == 0, "datagrams have no connections to hold idle (--idle)");
    Ok(())
}

/// How long to sleep until `wake`. A poll sleeps for whole milliseconds, so the rest is spun away: what is due must not
/// leave late because the generator overslept.
fn nap(wake: Nanos, now: Nanos) -> Duration {
    Duration::from_millis(wake.saturating_sub(now) / 1_000_000)
}

fn nanos(duration: Duration) -> Nanos {
    duration.as_nanos() as Nanos
}

/// Processor time that this process has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
