//! The echo server: one thread, one poll, any number of connections.
//!
//! [`Server`] binds the listeners, takes signals into the loop and polls. `Service` is everything else, and is
//! given readiness, the time and listeners from outside, so that a test can play the kernel to the whole of it.

mod acceptor;
mod echo;
mod listener;
mod printer;
#[cfg(test)]
mod simulation;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::HumanCount;
use log::{info, warn};
use signal_hook::low_level::signal_name;

use crate::address::Address;
use crate::limits;
use crate::reactor::{Counters, Poller, Reactor, Readiness, Settings};
use crate::signals::{self, Request, StopSignals};
use acceptor::{Accept, Acceptor};
use listener::Listener;
use printer::Printer;

pub use echo::{Echo, Messages};
pub use listener::SocketOptions;
pub use stats::Summary;

/// What a server is to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen. A host name means all its addresses.
    pub addresses: Vec<Address>,
    /// Close a connection after echoing a message equal to this.
    pub terminator: Option<Vec<u8>>,
    /// Close a connection after echoing so many messages; at least 1.
    pub message_limit: Option<u64>,
    /// Stop listening after so many connections, and end when the last has closed; at least 1.
    pub accept_limit: Option<u64>,
    /// Print messages on standard output.
    pub print: bool,
    /// Connections at once; `None`: what the open-files limit allows.
    pub max_connections: Option<usize>,
    /// Close connections on which nothing moved for so long.
    pub idle_timeout: Option<Duration>,
    /// How long a stop may take to send what is owed.
    pub drain_timeout: Duration,
    /// The sockets' options.
    pub sockets: SocketOptions,
    /// How long to spin before sleeping in the poll.
    pub busy_poll: Duration,
    /// How often to log the counters.
    pub stats_interval: Option<Duration>,
}

impl Default for Config {
    /// Listens nowhere, and echoes without limits.
    fn default() -> Self {
        Config {
            addresses: Vec::new(),
            terminator: None,
            message_limit: None,
            accept_limit: None,
            print: false,
            max_connections: None,
            idle_timeout: None,
            drain_timeout: Duration::from_secs(5),
            sockets: SocketOptions::default(),
            busy_poll: Duration::ZERO,
            stats_interval: None,
        }
    }
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A signal or the accept limit ended it, and what was owed has been sent as far as the time allowed.
    Stopped,
    /// A second signal, this one, ended it at once.
    Killed(i32),
}

/// A server that listens.
pub struct Server {
    poller: Poller,
    signals: StopSignals,
    local_addrs: Vec<SocketAddr>,
    service: Service<Listener>,
}

impl Server {
    /// Listens on all addresses of `config` and takes over SIGINT and SIGTERM. Raises the limit on open files.
    ///
    /// # Errors
    ///
    /// If one of the addresses cannot be had: an error that names it and the cause.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let limit = limits::raise_open_files().context("cannot raise the limit on open files")?;
        let poller = Poller::new(config.busy_poll).context("cannot make a poll")?;
        let signals = StopSignals::new(poller.registry())?;
        listener::check_backlog(config.sockets.backlog);
        let mut listeners = Vec::new();
        let mut local_addrs = Vec::new();
        for address in &config.addresses {
            let resolved = address.resolve().with_context(|| format!("cannot resolve {address}"))?;
            for found in resolved {
                let token = acceptor::token(listeners.len());
                let listener = Listener::bind(found, &config.sockets, poller.registry(), token)
                    .with_context(|| format!("cannot listen on {}", describe(address, found)))?;
                local_addrs.push(listener.local_addr()?);
                listeners.push(listener);
            }
        }
        let room = limits::room(limit);
        let max_connections = config.max_connections.unwrap_or(room);
        info!("room for {} connections (open files: at most {})", HumanCount(max_connections as u64), show(limit));
        if max_connections > room {
            warn!("but the limit on open files leaves room for {}: raise it (ulimit -n)", HumanCount(room as u64));
        }
        let printer = if config.print { Some(Printer::new(io::stdout()).context("cannot print")?) } else { None };
        let service = Service::new(config, listeners, max_connections, printer);
        Ok(Server { poller, signals, local_addrs, service })
    }

    /// The addresses it listens on, with the real ports.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Serves until a signal or the accept limit ends it.
    ///
    /// # Errors
    ///
    /// If the poll fails, which it does not in a process that leaves the server's descriptors alone.
    pub fn run(&mut self) -> io::Result<Ending> {
        while !self.service.is_done() {
            let sleep = self.service.sleep(Instant::now());
            let (now, ready) = self.poller.wait(sleep)?;
            let mut signalled = false;
            self.service.turn(
                now,
                ready.filter(|readiness| {
                    signalled |= readiness.token == signals::TOKEN;
                    readiness.token != signals::TOKEN
                }),
            );
            if !signalled {
                continue;
            }
            match self.signals.take(now) {
                Some(Request::Kill(signal)) => return Ok(Ending::Killed(signal)),
                Some(Request::Stop(signal)) => {
                    let name = signal_name(signal).unwrap_or_default();
                    info!("{name}: sending what is owed, and closing; once more ends at once");
                    self.service.stop(now);
                }
                None => {}
            }
        }
        self.service.finish();
        Ok(Ending::Stopped)
    }

    /// What it has done so far.
    pub fn summary(&self) -> Summary {
        self.service.summary()
    }
}

/// An address as it was asked for, and as it was resolved if that says more.
fn describe(asked: &Address, found: SocketAddr) -> String {
    let (asked, found) = (asked.to_string(), found.to_string());
    if asked == found { found } else { format!("{asked} ({found})") }
}

fn show(limit: Option<u64>) -> String {
    limit.map_or("no limit".to_owned(), |limit| HumanCount(limit).to_string())
}

/// The server without the poll: its connections, its listeners, and when it stops.
struct Service<A: Accept> {
    reactor: Reactor<A::Stream, Echo>,
    acceptor: Acceptor<A>,
    drain_timeout: Duration,
    /// When what is left is cut off. Set once stopping has begun.
    deadline: Option<Instant>,
    stats: Option<Stats>,
}

struct Stats {
    every: Duration,
    last: Instant,
    counters: Counters,
}

impl<A: Accept> Service<A> {
    /// Serves the connections of `listeners`, at most `max_connections` at once. Messages are printed with `printer`.
    pub fn new(config: &Config, listeners: Vec<A>, max_connections: usize, printer: Option<Printer>) -> Self {
        let echo = Echo::printing(config.terminator.as_deref(), config.message_limit, printer);
        let settings = Settings { idle_timeout: config.idle_timeout, ..Settings::default() };
        Service {
            reactor: Reactor::new(echo, settings),
            acceptor: Acceptor::new(listeners, max_connections, config.accept_limit),
            drain_timeout: config.drain_timeout,
            deadline: None,
            stats: config.stats_interval.map(|every| Stats {
                every,
                last: Instant::now(),
                counters: Counters::default(),
            }),
        }
    }

    /// One turn of the loop: serves what became ready and what was left over, then accepts.
    pub fn turn(&mut self, now: Instant, ready: impl IntoIterator<Item = Readiness>) {
        let acceptor = &mut self.acceptor;
        self.reactor.turn(now, ready.into_iter().filter(|readiness| !acceptor.mark(readiness)));
        self.acceptor.accept(now, &mut self.reactor);
        self.reactor.protocol_mut().flush();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            if !self.reactor.is_empty() {
                warn!("the drain timeout has passed: {} connections are cut", HumanCount(self.reactor.len() as u64));
            }
            self.reactor.cut();
        }
        if let Some(stats) = &mut self.stats
            && now >= stats.last + stats.every
        {
            let counters = *self.reactor.counters();
            info!("{}", stats::interval(&stats.counters, &counters, now - stats.last));
            stats.last = now;
            stats.counters = counters;
        }
    }

    /// How long the poll may sleep before the next turn; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        let until = |then: Instant| then.saturating_duration_since(now);
        let stats = self.stats.as_ref().map(|stats| until(stats.last + stats.every));
        [self.reactor.sleep(now), self.acceptor.sleep(now), self.deadline.map(until), stats].into_iter().flatten().min()
    }

    /// Stops: no more connections, and those there are are closed once they have been sent what they are owed.
    pub fn stop(&mut self, now: Instant) {
        self.acceptor.close();
        self.reactor.drain();
        self.deadline = Some(now + self.drain_timeout);
    }

    /// Sees to it that what is left to be printed is printed, within the drain timeout.
    fn finish(&mut self) {
        self.reactor.protocol_mut().finish(self.drain_timeout);
    }

    /// Whether there is nothing left to do: no listener, no connection.
    pub fn is_done(&self) -> bool {
        self.acceptor.is_closed() && self.reactor.is_empty()
    }

    /// What it has done so far.
    pub fn summary(&self) -> Summary {
        Summary { counters: *self.reactor.counters(), accept_pauses: self.acceptor.pauses }
    }
}
