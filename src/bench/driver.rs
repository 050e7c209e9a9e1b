//! The loop around the load: it opens the connections, keeps the schedule, and watches the time and the signals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use log::debug;

use super::clock::{Clock, Nanos, nanos};
use super::config::Config;
use super::latency::{micros, show_micros};
use super::ledger::Ledger;
use super::link::Link;
use super::load::{Load, Shape, Stage, Traffic, connect_kind};
use super::machine::World;
use super::progress::Progress;
use super::schedule::Schedule;
use super::stalls::Stalls;
use super::summary::{Cut, ErrorCount, ErrorKind};
use super::watch::{Precision, Usage, Watch};
use crate::count::counted;
use crate::reactor::Readiness;
use crate::signals::Request;
use crate::values::show_number;

/// Connections that are being opened at once.
const MAX_OPENING: usize = 512;

/// Slots that are told of messages that are due before the sockets are looked at again.
const BURST: usize = 1024;

/// How often the progress is shown.
const TICK: Nanos = 100_000_000;

/// The longest sleep: a stall that begins in one is noticed if it is longer than this.
const MAX_SLEEP: Nanos = 10_000_000;

/// How long a slot waits before it tries again to open a connection that failed, and for how long one that was opened must
/// be there to count.
const RETRY: Nanos = 100_000_000;

/// How long to wait when the backlog of a Unix listener is full.
const BACKLOG_FULL: Nanos = 2_000_000;

/// How often in a row a reply may be waited for in vain before a run that counts messages, and not time, is over.
const MAX_FUTILE: u32 = 3;

/// One stretch of load.
pub(super) struct Pace<'a> {
    pub rate: Option<f64>,
    pub warm_up: Duration,
    pub duration: Option<Duration>,
    pub messages: Option<u64>,
    /// Ends the window early.
    pub enough: Option<&'a dyn Fn(&Ledger) -> bool>,
}

impl Pace<'_> {
    pub fn of(config: &Config) -> Self {
        Pace {
            rate: config.rate,
            warm_up: config.warm_up,
            duration: config.length(),
            messages: config.messages,
            enough: None,
        }
    }
}

/// How long a stretch of load is to be, in words.
fn limits(pace: &Pace) -> String {
    let time = pace.duration.map(|duration| humantime::format_duration(duration).to_string());
    let messages = pace.messages.map(|messages| counted(messages, "message").to_string());
    let rate = pace.rate.map(|rate| format!("at {rate}/s"));
    [time, messages, rate].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Why a window has ended, in words.
fn why(cut: Cut) -> &'static str {
    match cut {
        Cut::Enough => "enough is known",
        Cut::NoConnection => "no connection is left, or nobody answers any more",
        Cut::Interrupted => "a signal came",
    }
}

/// What came of one stretch of load.
pub(super) struct Outcome {
    pub ledger: Ledger,
    pub errors: BTreeMap<ErrorKind, ErrorCount>,
    /// Messages per second that were to be sent; `None`: a closed loop.
    pub asked: Option<f64>,
    /// Why the window was ended before its time, if it was.
    pub cut: Option<Cut>,
    pub stalls: Stalls,
    /// How long the generator had nothing to do in the window.
    pub idle: Nanos,
    /// The last replies were not awaited: a signal ended that.
    pub abandoned: bool,
    /// Processor time that the generator used in the window.
    pub cpu: Duration,
    /// What the watched process had used at the window's beginning and at its end.
    pub watched: Option<(Usage, Usage)>,
}

/// What the driver is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Anything before the end of the window.
    Measuring,
    /// The last replies are awaited.
    Awaiting,
}

/// The loop around the load.
pub(super) struct Driver<'a, W: World> {
    config: &'a Config,
    pub world: W,
    pub link: Link<W>,
    /// Slots to open connections for, each not before its time.
    to_open: BinaryHeap<Reverse<(Nanos, u32)>>,
    /// Since when the listener's backlog has been full.
    full_since: Option<Nanos>,
    /// Since when there has been no connection.
    alone_since: Option<Nanos>,
    /// Nobody is there any more, and nobody is waited for.
    deserted: bool,
    /// Somebody has asked for the end before the window was over.
    interrupted: bool,
    /// Somebody has asked for the end while the last replies were awaited.
    impatient: bool,
    phase: Phase,
    stalls: Stalls,
    /// How long there has been nothing to do, in the whole run.
    idle: Nanos,
    next_tick: Nanos,
    ready: Vec<Readiness>,
    /// The process that is watched.
    pub watch: Option<Watch>,
    pub progress: Progress,
}

impl<'a, W: World> Driver<'a, W> {
    pub fn new(config: &'a Config, world: W, datagrams: bool, max_closing: usize, progress: Progress) -> Self {
        let shape = Shape {
            seed: config.seed,
            sizes: config.size,
            depth: config.depth,
            reconnect: config.reconnect,
            busy: config.connections,
            idle: config.idle,
            timeout: config.timeout,
            max_closing,
            by_greeting: config.by_greeting,
        };
        Driver {
            config,
            link: Link::new(datagrams, Load::new(&shape, Clock::new(W::clock()))),
            world,
            to_open: BinaryHeap::new(),
            full_since: None,
            alone_since: None,
            deserted: false,
            interrupted: false,
            impatient: false,
            phase: Phase::Measuring,
            stalls: Stalls::new(),
            idle: 0,
            next_tick: 0,
            ready: Vec::new(),
            watch: None,
            progress,
        }
    }

    pub fn load(&self) -> &Load {
        self.link.load()
    }

    pub fn load_mut(&mut self) -> &mut Load {
        self.link.load_mut()
    }

    fn now(&mut self) -> Nanos {
        self.load_mut().clock.read()
    }

    /// Opens a connection for every slot. Returns how long that took.
    pub fn open_all(&mut self) -> anyhow::Result<Duration> {
        let begin = self.now();
        let interval = self.config.connect_rate.map_or(0.0, |rate| 1e9 / rate);
        let slots = self.load().slots.len();
        self.progress.bar.set_prefix("connecting");
        self.progress.bar.set_length(slots as u64);
        let several = self.world.addresses().len() > 1 && !self.config.all_addresses;
        let opened = if several { self.choose_address()? } else { 0 };
        for index in opened..slots {
            self.to_open.push(Reverse((begin + (index as f64 * interval) as Nanos, index as u32)));
        }
        self.name_addresses();
        self.await_connections()?;
        let nobody = self.link.is_empty() && self.load().record.connect.is_empty();
        if nobody && !self.interrupted {
            let attempts = self.load().record.error_count();
            let address = &self.config.address;
            let remedy = match self.load().record.errors.keys().next() {
                Some(ErrorKind::Refused) => format!("; does anybody listen there? `echoloop serve {address}` would"),
                _ => String::new(),
            };
            bail!(
                "cannot connect to {address}: {} ({}){remedy}",
                self.first_error(),
                match attempts {
                    1 => "one attempt".to_owned(),
                    attempts => format!("all {}", counted(attempts, "attempt")),
                }
            );
        }
        let took = Duration::from_nanos(self.now() - begin);
        let open = self.load().open() + self.load().open_idle();
        debug!("{} open after {}", counted(open, "connection"), show_micros(took.as_secs_f64() * 1e6));
        Ok(took)
    }

    /// Of several addresses takes the first to which a connection can be opened. That connection is the first slot's, so
    /// finding out costs the server none. Returns how many slots have theirs.
    fn choose_address(&mut self) -> anyhow::Result<usize> {
        let mut failures = Vec::new();
        for (number, address) in self.world.addresses().into_iter().enumerate() {
            self.world.choose(Some(number));
            let now = self.now();
            self.to_open.push(Reverse((now, 0)));
            self.await_connections()?;
            if !self.link.is_empty() || self.interrupted {
                debug!("{address} takes connections, and is measured");
                return Ok(1);
            }
            // That an address is nobody's is no error of the run.
            let cause = self.first_error();
            debug!("{address} does not take connections: {cause}");
            self.load_mut().record.errors.clear();
            failures.push(format!("{address}: {cause}"));
        }
        bail!("cannot connect to {}: {}", self.config.address, failures.join("; "))
    }

    /// Has errors name the address, where it is not the one that was asked for.
    fn name_addresses(&mut self) {
        let addresses = self.world.addresses();
        if addresses != [self.config.address.to_string()] {
            self.load_mut().record.addresses = addresses;
        }
    }

    pub fn first_error(&self) -> String {
        let first = self.load().record.errors.values().next();
        first.map_or("no reason is known".to_owned(), |error| error.first.clone())
    }

    /// Waits until it is time to begin. If that has passed already, returns a warning.
    pub fn await_start(&mut self) -> anyhow::Result<Option<String>> {
        let Some(start) = self.config.start_at else { return Ok(None) };
        let left = || start.duration_since(SystemTime::now());
        if let Err(passed) = left() {
            let late = passed.duration().as_secs_f64();
            return Ok(Some(format!("the connections were open {late:.1} s after the time to start (--start-at)")));
        }
        self.progress.bar.set_prefix("waiting");
        while let Ok(left) = left()
            && !self.is_over()
        {
            let now = self.now();
            self.step(Some(now + nanos(left)))?;
        }
        Ok(None)
    }

    fn await_connections(&mut self) -> anyhow::Result<()> {
        (self.alone_since, self.deserted) = (None, false);
        while (!self.to_open.is_empty() || self.load().connecting > 0) && !self.interrupted {
            self.step(None)?;
            // The rest, which --connect-rate holds back, would be as alone.
            if self.deserted && self.load().connecting == 0 {
                self.to_open.clear();
            }
        }
        Ok(())
    }

    /// Makes load for a while, and measures it. Ends in any case: at the latest a timeout after the window.
    pub fn stage(&mut self, pace: &Pace) -> anyhow::Result<Outcome> {
        let mut now = self.now();
        let traffic = |now| pace.rate.map_or(Traffic::Closed, |rate| Traffic::Open(Schedule::new(now, rate)));
        self.load_mut().start(traffic(now));
        (self.phase, self.impatient) = (Phase::Measuring, false);
        self.count_the_living();
        let from = now + nanos(pace.warm_up);
        if from > now {
            self.progress.bar.set_prefix("warming up");
            debug!("warming up for {}", humantime::format_duration(pace.warm_up));
            self.feed_all();
        }
        while now < from && !self.is_over() {
            now = self.step(Some(from))?;
        }

        let cpu = processor_time();
        let usage = self.look(Precision::Children);
        self.stalls = Stalls::new();
        let idle_before = self.idle;
        now = self.now();
        if pace.warm_up.is_zero() {
            // The first message is due when the window opens, and not just before it.
            self.load_mut().start(traffic(now));
        }
        let end = pace.duration.map(|duration| now + nanos(duration));
        self.load_mut().open_window(now, end, pace.messages);
        self.feed_all();
        // If the end was asked for before, the window closes at once, and what was just sent is of it.
        now = self.now();
        self.progress.bar.set_prefix("measuring");
        debug!("measuring: {}", limits(pace));
        self.progress
            .bar
            .set_length(pace.duration.map_or(pace.messages.unwrap_or(0), |duration| duration.as_millis() as u64));
        let (mut enough, mut looked) = (false, now);
        while end.is_none_or(|end| now < end) && !self.load().is_exhausted() && !self.is_over() && !enough {
            now = self.step(end)?;
            if now >= looked + TICK {
                looked = now;
                enough = pace.enough.is_some_and(|enough| self.load().record.ledger().is_some_and(enough));
            }
            if pace.duration.is_none() && self.load().futile() >= MAX_FUTILE {
                self.deserted = true;
            }
        }
        let cut = match () {
            () if end.is_some_and(|end| now >= end) || self.load().is_exhausted() => None,
            () if self.interrupted => Some(Cut::Interrupted),
            () if self.deserted => Some(Cut::NoConnection),
            () => Some(Cut::Enough),
        };
        self.load_mut().close_window(now);
        debug!("the window is over: {}", cut.map_or("as planned", why));
        let cpu = processor_time() - cpu;
        let idle = self.idle - idle_before;
        let watched = usage.zip(self.look(Precision::Children));

        // What fell due while the last turn was running is sent still; what the generator has not got to is not.
        self.feed_all();
        self.load_mut().drop_backlog(now);
        self.phase = Phase::Awaiting;
        self.progress.bar.set_prefix("last ones");
        let outstanding = self.load().record.ledger().map_or(0, Ledger::outstanding);
        debug!("waiting for what is in flight: {}", counted(outstanding, "message"));
        let last = self.load().record.ledger().map_or(now, |ledger| ledger.to().max(now)) + nanos(self.config.timeout);
        now = self.now();
        while self.load().is_awaiting() && now <= last && !self.impatient && !self.deserted {
            now = self.step(Some(last + 1))?;
        }
        self.link.expire(now);
        let is_error = !self.impatient && !self.link.may_lose();
        let load = self.load_mut();
        load.settle(now, is_error);
        let open = load.open();
        let (ledger, errors) = load.record.take(open).context("the window was not opened")?;
        let stalls = std::mem::replace(&mut self.stalls, Stalls::new());
        let abandoned = self.impatient;
        debug!("{} of {} answered", ledger.outcomes.all_answered(), counted(ledger.outcomes.due, "message"));
        Ok(Outcome { ledger, errors, asked: pace.rate, cut, stalls, idle, abandoned, cpu, watched })
    }

    /// Opens connections for the slots that lost theirs.
    pub fn reopen_missing(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        self.to_open.clear();
        let closed = self.load().slots.iter().enumerate().filter(|(_, slot)| slot.stage == Stage::Closed);
        let closed: Vec<_> = closed.map(|(index, _)| Reverse((now, index as u32))).collect();
        self.to_open.extend(closed);
        self.await_connections()
    }

    /// Whether somebody has asked for the end.
    pub fn is_asked_to_end(&self) -> bool {
        self.interrupted || self.impatient
    }

    fn is_over(&self) -> bool {
        self.interrupted || self.deserted
    }

    /// One turn of the loop, and no longer a sleep in it than until `wake`. Returns the time at its end.
    fn step(&mut self, wake: Option<Nanos>) -> anyhow::Result<Nanos> {
        let (began, begun) = (self.load().clock.now(), self.load().begun);
        self.open_due(began);
        self.send_due(began);
        self.link.expire(began);
        if began >= self.next_tick {
            self.tick(began)?;
        }
        if self.load().record.ledger().and_then(Ledger::next_interval).is_some_and(|at| began >= at) {
            let open = self.load().open();
            self.load_mut().record.advance(began, open);
        }
        self.follow_the_gone();

        let load = self.load();
        let now = load.clock.now();
        let opening = self.to_open.peek().filter(|_| load.connecting < MAX_OPENING).map(|Reverse((at, _))| *at);
        let exact = [wake, opening, load.next_due(began)].into_iter().flatten().min();
        let interval = load.record.ledger().and_then(Ledger::next_interval);
        let rough = [load.next_timeout(), interval, Some(self.next_tick), Some(now + MAX_SLEEP)];
        let rough = Duration::from_nanos(rough.into_iter().flatten().min().unwrap_or(now).saturating_sub(now));
        let sleeps = [exact.map(|wake| nap(wake, now)), Some(rough), self.link.sleep(load.clock.instant())];
        let sleep = sleeps.into_iter().flatten().min().unwrap_or_default();

        self.ready.clear();
        let (instant, request) = self.world.wait(sleep, &mut self.ready)?;
        let woke = self.load().clock.at(instant);
        self.link.turn(instant, &self.ready);
        let end = self.now();
        // A poll rounds its sleep up to the next millisecond.
        let overslept = woke.saturating_sub(now + nanos(sleep)).saturating_sub(1_000_000);
        self.stalls.note((now - began) + overslept + end.saturating_sub(woke));
        // A poll that need not have returned at once was waited in; one that did, and found nothing, was all for nothing.
        match self.ready.is_empty() && self.load().begun == begun {
            true => self.idle += end - began,
            false if !sleep.is_zero() => self.idle += woke.saturating_sub(now),
            false => {}
        }
        if let Some(request) = request {
            self.take_request(request);
        }
        self.follow_the_gone();
        self.count_the_living();
        Ok(end)
    }

    /// Begins to open the connections whose time has come.
    fn open_due(&mut self, now: Nanos) {
        while self.load().connecting < MAX_OPENING
            && let Some(&Reverse((at, index))) = self.to_open.peek()
            && at <= now
        {
            self.to_open.pop();
            match self.link.open(index, &mut self.world) {
                Ok(()) => self.full_since = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = *self.full_since.get_or_insert(now);
                    if now - since < nanos(self.config.timeout) {
                        self.to_open.push(Reverse((now + BACKLOG_FULL, index)));
                        return;
                    }
                    self.cannot_open(index, ErrorKind::ConnectTimeout, "the listener's backlog stays full".to_owned());
                }
                Err(error) => self.cannot_open(index, connect_kind(&error), self.world.explain(index, &error)),
            }
        }
    }

    fn cannot_open(&mut self, index: u32, kind: ErrorKind, cause: String) {
        self.load_mut().record.error(kind, index as usize, || cause);
        self.load_mut().gone.push((index, true));
    }

    /// Sends what is due by the schedule: so much at a time that what comes is looked at in between.
    fn send_due(&mut self, now: Nanos) {
        self.load_mut().release(now);
        for _ in 0..BURST {
            let Some(index) = self.load_mut().take_told() else { return };
            self.feed(index);
        }
    }

    fn feed_all(&mut self) {
        for index in 0..self.load().busy {
            self.feed(index as u32);
        }
    }

    fn feed(&mut self, index: u32) {
        if self.load().slots[index as usize].stage == Stage::Open {
            self.link.feed(index);
        }
    }

    /// Does what follows from connections that are gone.
    fn follow_the_gone(&mut self) {
        if self.load().gone.is_empty() {
            return;
        }
        let now = self.now();
        for (index, failed) in std::mem::take(&mut self.load_mut().gone) {
            if self.config.reconnect.is_some() && self.load().is_sending() {
                let pause = if failed { RETRY } else { 0 };
                self.to_open.push(Reverse((now + pause, index)));
            }
        }
    }

    /// Notes whether there is a connection, or will be one.
    fn count_the_living(&mut self) {
        let now = self.load().clock.now();
        if self.load_mut().is_alive(now, RETRY) {
            self.alone_since = None;
            self.deserted = false;
            return;
        }
        // Connections that are closed as soon as they are answered are never seen open.
        let since = (*self.alone_since.get_or_insert(now)).max(self.load().answered_at);
        let hopeless = self.config.reconnect.is_none() && self.to_open.is_empty() && self.load().connecting == 0;
        self.deserted = hopeless || now.saturating_sub(since) >= nanos(self.config.timeout);
    }

    fn tick(&mut self, now: Nanos) -> anyhow::Result<()> {
        self.next_tick = now + TICK;
        self.look(Precision::Rough);
        self.show_progress(now);
        Ok(())
    }

    /// Looks at the process that is watched. That it has ended is no reason to end.
    pub fn look(&mut self, precision: Precision) -> Option<Usage> {
        self.watch.as_mut().map(|watch| watch.look(precision))
    }

    /// A process that is killed loses its connections first, and is seen to have ended a moment later.
    pub fn look_for_the_end(&mut self) {
        for _ in 0..20 {
            if !self.deserted || self.watch.as_ref().is_none_or(|watch| watch.ended) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
            self.look(Precision::Rough);
        }
    }

    fn show_progress(&self, now: Nanos) {
        if self.progress.bar.is_hidden() {
            return;
        }
        let load = self.load();
        let Some(ledger) = load.record.ledger() else {
            let open = load.open() + load.open_idle();
            self.progress.bar.set_position(open);
            self.progress.bar.set_message(format!(
                "{}, {}",
                counted(open, "connection"),
                counted(load.record.error_count(), "error")
            ));
            return;
        };
        let elapsed = now.saturating_sub(ledger.from());
        let answered = ledger.outcomes.all_answered();
        let timed = self.config.length().is_some() || self.config.find_rate.is_some();
        self.progress.bar.set_position(if timed { elapsed / 1_000_000 } else { answered });
        let percentile = |p| show_micros(micros(ledger.current().value_at_percentile(p)));
        self.progress.bar.set_message(format!(
            "{}/s, p50 {}, p99 {}, {}, {}",
            show_number(answered as f64 * 1e9 / elapsed.max(1) as f64),
            percentile(50.0),
            percentile(99.0),
            counted(load.open() + load.open_idle(), "connection"),
            counted(load.record.error_count(), "error")
        ));
    }

    /// The first request ends what is going on: the window, or the waiting for the last replies. A second one ends the
    /// waiting after the window, and any other the process.
    fn take_request(&mut self, request: Request) {
        match request {
            Request::Stop(_) if self.phase == Phase::Measuring && !self.interrupted => {
                self.interrupted = true;
                self.progress.bar.println("ending early; once more ends the waiting for the last replies, too");
            }
            Request::Stop(_) => {
                self.impatient = true;
                self.progress.bar.println("not waiting for the last replies; once more ends at once");
            }
            Request::Kill(signal) => {
                self.progress.finish();
                std::process::exit(128 + signal);
            }
        }
    }
}

/// How long to sleep until `wake`. A poll sleeps for whole milliseconds, so the rest is spun away: what is due must not
/// leave late because the generator overslept.
fn nap(wake: Nanos, now: Nanos) -> Duration {
    Duration::from_millis(wake.saturating_sub(now) / 1_000_000)
}

/// Processor time that this process has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
