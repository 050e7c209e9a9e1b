//! All that a server does, without the poll: the echo over streams and datagrams, the admin interface, and when it stops.
//!
//! It is given readiness, the time and sockets from outside, so that a test can play the kernel to the whole of it.

use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::access::DatagramGate;
use super::admin::{Admin, Snapshot, StatusSource};
use super::config::Config;
use super::datagrams::DatagramEcho;
use super::echo::{Echo, SharedPrinter, StreamService};
use super::fault::{Accepting, FaultCounters, SharedCounters};
use super::stats::{RefusalLog, Stats, Summary};
use super::tokens::{self, Owner};
use crate::count::{agreeing, counted};
use crate::reactor::address::Endpoint;
use crate::reactor::{
    Activity, DatagramSocket, Datagrams, ListenerCounters, Reactor, Readiness, Settings, Source, Stream, shortest,
};

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Nobody has asked for one.
    No,
    /// Whoever asks is told of it; until then it goes on accepting and serving.
    Delayed(Instant),
    /// What is owed is sent; then, what is left is aborted.
    Draining(Instant),
}

/// The sources of a server, as one.
pub(super) struct Service<S: Stream, D: DatagramSocket, P: StreamService<S> = Echo> {
    pub streams: Reactor<S, P>,
    pub datagrams: Datagrams<D, DatagramEcho>,
    pub admin: Option<Admin<S>>,
    printer: Option<SharedPrinter>,
    stats: Option<Stats>,
    /// Of connections, and of datagrams.
    refusals: (RefusalLog, RefusalLog),
    accept_limit: Option<u64>,
    accepting: Accepting,
    /// When the next connection may be accepted, and how many had been when that was decided.
    next_accept: (Instant, u64),
    faults: Option<SharedCounters>,
    pub stop_delay: Duration,
    drain_timeout: Duration,
    stop: Stop,
    began: Instant,
    /// How long it has slept in the poll.
    pub asleep: Duration,
    /// Where it listens, or did.
    pub endpoints: Vec<Endpoint>,
}

#[cfg(test)]
impl<S: Stream, D: DatagramSocket> Service<S, D> {
    /// What `config` asks for, with at most `max_connections` over streams; messages are printed with `printer`.
    pub fn new(config: &Config, max_connections: usize, printer: Option<SharedPrinter>, now: Instant) -> Self {
        let mut service = Service::around(config.echo(printer.clone()), None, config, printer, now);
        service.streams.set_max_connections(max_connections);
        service
    }
}

impl<S: Stream, D: DatagramSocket, P: StreamService<S>> Service<S, D, P> {
    /// What `config` asks for, with this over streams; messages are printed with `printer`, and `faults` counted.
    pub fn around(
        protocol: P,
        faults: Option<SharedCounters>,
        config: &Config,
        printer: Option<SharedPrinter>,
        now: Instant,
    ) -> Self {
        let settings = Settings { idle_timeout: config.idle_timeout, ..Settings::default() };
        let mut streams = Reactor::new(protocol, settings);
        streams.set_accept_limit(config.accept_limit());
        let datagrams = DatagramEcho {
            gate: DatagramGate::new(&config.access),
            printer: printer.clone(),
            hex: config.prints_hex(),
            faults: faults.as_ref().and_then(|counters| config.faults.datagrams(counters)),
        };
        let mut service = Service {
            streams,
            datagrams: Datagrams::new(datagrams, tokens::DATAGRAMS),
            admin: None,
            printer,
            stats: config.stats_interval.map(Stats::new),
            refusals: Default::default(),
            accept_limit: config.accept_limit(),
            accepting: config.faults.accepting(),
            next_accept: (now, 0),
            faults,
            stop_delay: config.stop_delay,
            drain_timeout: config.drain_timeout,
            stop: Stop::No,
            began: now,
            asleep: Duration::ZERO,
            endpoints: Vec::new(),
        };
        service.limit_accepts(now);
        service
    }

    /// Stops, after the stop delay. Returns when everything will have ended at the latest.
    pub fn stop(&mut self, now: Instant) -> Instant {
        let (until, end) = (now + self.stop_delay, now + self.stop_delay + self.drain_timeout);
        self.stop = Stop::Delayed(until);
        if self.stop_delay.is_zero() {
            self.drain(end);
        }
        end
    }

    /// Connections that are established by now are still accepted, what waits for each is sent, and then they are closed;
    /// datagrams that have come are still answered.
    fn drain(&mut self, end: Instant) {
        self.datagrams.drain();
        if self.accepting == Accepting::Never {
            self.streams.stop_listening();
        }
        self.accepting = Accepting::Freely;
        self.streams.drain();
        self.stop = Stop::Draining(end);
    }

    /// Whether it has been told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop != Stop::No
    }

    /// Whether it has been told to stop, and the stop delay is over.
    fn is_draining(&self) -> bool {
        matches!(self.stop, Stop::Draining(_))
    }

    /// Drops all that is left, at once.
    pub fn abort(&mut self) {
        self.streams.abort_all();
    }

    /// By when everything is to have ended, now that nobody is left to be served: what is still to be printed included, for
    /// there is one deadline for all of it.
    pub fn finish_by(&self, now: Instant) -> Instant {
        match self.stop {
            Stop::Draining(end) => end,
            Stop::No | Stop::Delayed(_) => now + self.drain_timeout,
        }
    }

    /// Whether there is nothing left to do: no listener, no connection, no datagram to answer. Those who had connections
    /// come to an end with the last of them, though datagrams go on coming.
    pub fn is_done(&self) -> bool {
        let had_streams = self.streams.counters().opened > 0 && !self.is_draining();
        !self.streams.is_listening() && self.streams.is_empty() && (had_streams || self.datagrams.is_empty())
    }

    /// How many connections, of all kinds, and datagram sockets can make a step without an event.
    pub fn ready(&self) -> usize {
        self.streams.ready() + self.datagrams.ready() + self.admin.as_ref().map_or(0, |admin| admin.reactor.ready())
    }

    /// Where it listens at present.
    fn listening(&self) -> Vec<Endpoint> {
        let is_open = |endpoint: &&Endpoint| match endpoint {
            Endpoint::Udp(_) => !self.datagrams.is_empty() && !self.is_draining(),
            _ => self.streams.is_listening() && !self.is_draining(),
        };
        self.endpoints.iter().filter(is_open).cloned().collect()
    }

    /// What came of each listener for connections, those closed included.
    fn listeners(&self) -> Vec<(String, ListenerCounters)> {
        let streams = self.endpoints.iter().filter(|endpoint| !matches!(endpoint, Endpoint::Udp(_)));
        streams.map(ToString::to_string).zip(self.streams.listeners().iter().copied()).collect()
    }

    /// What it has done so far.
    pub fn summary(&self) -> Summary {
        let (counters, refusals) = (*self.datagrams.counters(), self.datagrams.protocol().gate.refusals);
        Summary {
            counters: *self.streams.counters(),
            refusals: self.streams.protocol().echo().gate.refusals,
            datagrams: (!self.datagrams.is_empty() || counters.received > 0).then_some((counters, refusals)),
            faults: self.faults.as_ref().map(|faults| *faults.borrow()),
        }
    }

    /// Counts something that was done wrong on request.
    pub fn count_fault(&mut self, count: impl FnOnce(&mut FaultCounters)) {
        if let Some(faults) = &self.faults {
            count(&mut faults.borrow_mut());
        }
    }

    /// How many connections may still be accepted: those of which is not known yet whether they are let in may turn out
    /// not to count.
    fn limit_accepts(&mut self, now: Instant) {
        if self.accept_limit.is_none() && self.accepting == Accepting::Freely {
            return;
        }
        let echo = self.streams.protocol().echo();
        let (admitted, undecided) = (echo.admitted(), echo.undecided());
        let left = self.accept_limit.map(|limit| limit.saturating_sub(admitted + undecided));
        if self.accept_limit.is_some_and(|limit| admitted >= limit) && self.streams.is_listening() {
            info!("the last connection has been accepted; listening ends");
            self.streams.stop_listening();
        }
        let allowed = match self.accepting {
            Accepting::Freely => None,
            Accepting::Never => Some(0),
            Accepting::Slowly(pause) => {
                let opened = self.streams.counters().opened;
                if opened > self.next_accept.1 {
                    self.next_accept = (now + pause, opened);
                    debug!("fault: the next accept is put off by {pause:?}");
                    self.faults.iter().for_each(|faults| faults.borrow_mut().accepts += 1);
                }
                Some(u64::from(now >= self.next_accept.0))
            }
        };
        self.streams.set_accept_limit([left, allowed].into_iter().flatten().min());
    }
}

impl<S: Stream, D: DatagramSocket, P: StreamService<S>> Source for Service<S, D, P> {
    fn note(&mut self, readiness: Readiness) {
        match (Owner::of(readiness.token), &mut self.admin) {
            (Owner::Streams, _) => self.streams.note(readiness),
            (Owner::Datagrams, _) => self.datagrams.note(readiness),
            (Owner::Admin, Some(admin)) => admin.note(readiness),
            (Owner::Admin | Owner::Signals, _) => {}
        }
    }

    fn turn(&mut self, now: Instant) {
        if let Stop::Delayed(until) = self.stop
            && now >= until
        {
            info!("the stop delay has passed: sending what is left to send, and closing");
            self.drain(until + self.drain_timeout);
        }
        self.streams.turn(now);
        self.limit_accepts(now);
        self.datagrams.turn(now);
        if let Some(printer) = &self.printer {
            printer.borrow_mut().flush();
        }
        if let Some(mut admin) = self.admin.take() {
            admin.turn(now);
            admin.answer(now, self);
            self.admin = Some(admin);
        }
        self.refusals.0.turn("connections refused", &self.streams.protocol().echo().gate.refusals, now);
        self.refusals.1.turn("datagrams not answered", &self.datagrams.protocol().gate.refusals, now);
        if self.stats.as_ref().is_some_and(|stats| now >= stats.due()) {
            let summary = self.summary();
            self.stats.iter_mut().for_each(|stats| stats.log(now, summary));
        }
        if let Stop::Draining(end) = self.stop
            && now >= end
            && !self.is_done()
        {
            let (left, verb) = (counted(self.streams.len(), "connection"), agreeing(self.streams.len(), "is"));
            let unread = if self.datagrams.is_empty() { "" } else { ", and datagrams are left unread" };
            warn!("the drain timeout has passed: {left} {verb} aborted{unread}");
            self.streams.abort_all();
            self.datagrams.close();
        }
    }

    fn sleep(&self, now: Instant) -> Option<Duration> {
        let until = |then: Instant| then.saturating_duration_since(now);
        shortest([
            self.streams.sleep(now),
            self.datagrams.sleep(now),
            self.admin.as_ref().and_then(|admin| admin.sleep(now)),
            self.stats.as_ref().map(|stats| until(stats.due())),
            self.refusals.0.sleep(self.streams.protocol().echo().gate.refusals.total(), now),
            self.refusals.1.sleep(self.datagrams.protocol().gate.refusals.total(), now),
            match self.stop {
                Stop::Delayed(then) | Stop::Draining(then) if !self.is_done() => Some(until(then)),
                _ => None,
            },
            // After that turn one may be accepted, and then this is over.
            Some(until(self.next_accept.0)).filter(|sleep| !sleep.is_zero()),
        ])
    }
}

impl<S: Stream, D: DatagramSocket, P: StreamService<S>> StatusSource for Service<S, D, P> {
    fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            summary: self.summary(),
            messages: self.streams.protocol().echo().messages(),
            unprinted: self.printer.as_ref().map(|printer| printer.borrow().unprinted()),
            max_connections: self.streams.settings().max_connections as u64,
            up: now.saturating_duration_since(self.began),
            asleep: self.asleep,
            stopping: self.is_stopping(),
            listening: self.listening(),
            listeners: self.listeners(),
            starved: self.streams.is_starved(),
        }
    }

    fn slots(&self) -> usize {
        self.streams.slots()
    }

    fn activity(&self, slot: usize, recent: Duration) -> Option<Activity> {
        self.streams.activity(slot, recent)
    }
}
