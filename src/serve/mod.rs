//! The echo server: one thread, one poll, any number of connections.
//!
//! [`Server`] binds the sockets, takes signals into the loop and polls. `Service` is the echo over streams, and is given
//! readiness, the time and listeners from outside, so that a test can play the kernel to the whole of it. Beside it on
//! the same poll are datagrams, and whoever looks admin.

mod acceptor;
mod access;
mod admin;
mod datagrams;
mod echo;
mod listener;
mod printer;
mod proxy;
#[cfg(test)]
mod simulation;
mod stats;
mod supervisor;
#[cfg(test)]
mod tests;
mod tokens;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::HumanCount;
use log::{info, warn};
use signal_hook::low_level::signal_name;

use crate::limits;
use crate::reactor::address::{Address, DEFAULT, Endpoint};
use crate::reactor::{Activity, Poller, Reactor, Readiness, Settings};
use crate::signals::{self, Request, StopSignals};
use crate::stdio;
use acceptor::{Accept, Acceptor};
use access::DatagramGate;
use admin::{Admin, Snapshot, StatusSource};
use datagrams::{Datagrams, UdpPort};
use listener::Listener;
use mio::Token;
use printer::Printer;
use rustix::io::Errno;
use stats::Stats;
use supervisor::{Inherited, Supervisor};

pub(crate) use access::canonical;
pub use access::{AccessOptions, Refusal, Refusals};
pub use datagrams::DatagramCounters;
pub use echo::{Echo, Session};
pub use listener::SocketOptions;
pub use stats::Summary;

/// What a server is to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; a host name means all its addresses. None: on the sockets that a supervisor has handed over,
    /// and if there are none either, at the [default address](crate::reactor::address::DEFAULT).
    pub addresses: Vec<Address>,
    /// Where to show, over HTTP, what goes on admin.
    pub http: Vec<Address>,
    /// Who may come in.
    pub access: AccessOptions,
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
    /// Echoes to everybody, without limits.
    fn default() -> Self {
        Config {
            addresses: Vec::new(),
            http: Vec::new(),
            access: AccessOptions::default(),
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
    supervisor: Supervisor,
    endpoints: Vec<Endpoint>,
    service: Service<Listener>,
    datagrams: Datagrams<UdpPort>,
    /// There is no listener, so that having none is no end.
    datagrams_only: bool,
    admin: Option<Admin>,
    /// Who prints where it listens, if no messages are printed.
    printer: Option<Printer>,
    stats: Option<Stats>,
    stopping: bool,
    /// When the process is to have ended, however it ends.
    finish_by: Option<Instant>,
    began: Instant,
    asleep: Duration,
}

impl Server {
    /// Listens on all addresses of `config` and takes over the signals that end it: see [`StopSignals`]. Raises the limit
    /// on open files.
    ///
    /// # Errors
    ///
    /// If one of the addresses cannot be had: an error that names it and the cause.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let limit = limits::raise_open_files();
        Server::bind_within(limit, config).map_err(|error| {
            let is_limit = |cause: &io::Error| cause.raw_os_error() == Some(Errno::MFILE.raw_os_error());
            if error.chain().any(|cause| cause.downcast_ref().is_some_and(is_limit)) {
                error.context(format!("the limit on open files, {}, is too low: raise it (ulimit -n)", show(limit)))
            } else {
                error
            }
        })
    }

    fn bind_within(limit: Option<u64>, config: &Config) -> anyhow::Result<Self> {
        let poller = Poller::new(config.busy_poll).context("cannot make a poll")?;
        let signals = StopSignals::new(poller.registry())?;
        listener::check_backlog(config.sockets.backlog);
        let mut bound = Bound::new(&poller, &config.sockets);
        for socket in supervisor::inherited()? {
            bound.inherit(socket).context("cannot use LISTEN_FDS")?;
        }
        for address in &config.addresses {
            bound.listen(address)?;
        }
        if bound.endpoints.is_empty() {
            bound.listen(&DEFAULT.parse()?)?;
        }
        let Bound { listeners, ports, endpoints, .. } = bound;
        // The echo's options are not for these: on a port that several processes share, who looks would see any of them.
        let plain = SocketOptions::default();
        let mut http = Bound::new(&poller, &plain);
        http.taken = listeners.len() + ports.len();
        for address in &config.http {
            http.listen(address)?;
        }
        let mut room = limits::room(limit);
        let admin = (!http.listeners.is_empty()).then(|| {
            // Those who look take no more than a quarter of what there is.
            let share = admin::MAX_CONNECTIONS.min(room / 4).max(1);
            room = room.saturating_sub(share);
            Admin::new(http.listeners, http.endpoints, share)
        });
        ensure!(
            room > 0 || listeners.is_empty(),
            "the limit on open files, {}, leaves no room for a connection: raise it (ulimit -n)",
            show(limit)
        );
        let max_connections = config.max_connections.unwrap_or(room);
        info!("echoloop {}, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
        info!("room for {} connections (open files: at most {})", HumanCount(max_connections as u64), show(limit));
        if max_connections > room {
            warn!("but the limit on open files leaves room for {}: raise it (ulimit -n)", HumanCount(room as u64));
        }
        let printer = Printer::new(stdio::stdout()).context("cannot print")?;
        let (messages, printer) = if config.print { (Some(printer), None) } else { (None, Some(printer)) };
        let own_ports = ports.iter().map(|(_, port)| Ok(port.local_addr()?.port())).collect::<io::Result<_>>()?;
        Ok(Server {
            poller,
            signals,
            supervisor: Supervisor::new(),
            endpoints,
            datagrams: Datagrams::new(ports, DatagramGate::new(&config.access, own_ports)),
            datagrams_only: listeners.is_empty(),
            service: Service::new(config, listeners, max_connections, messages),
            admin,
            printer,
            stats: config.stats_interval.map(Stats::new),
            stopping: false,
            finish_by: None,
            began: Instant::now(),
            asleep: Duration::ZERO,
        })
    }

    /// Where it listens, with the real ports.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Where it shows what goes on admin.
    pub fn http_endpoints(&self) -> &[Endpoint] {
        self.admin.as_ref().map_or(&[], Admin::endpoints)
    }

    /// Prints where it listens, a line each, with the real ports. Does not wait until they are read.
    pub fn announce(&mut self) {
        let mut lines: Vec<_> = self.endpoints().iter().map(|endpoint| format!("listening on {endpoint}")).collect();
        lines.extend(self.http_endpoints().iter().map(|endpoint| match endpoint {
            Endpoint::Tcp(address) => format!("inside: http://{address}/"),
            other => format!("inside: {other}"),
        }));
        if let Some(printer) = self.printer() {
            lines.iter().for_each(|line| printer.print(|out| writeln!(out, "{line}")));
            printer.flush();
        }
    }

    fn printer(&mut self) -> Option<&mut Printer> {
        self.printer.as_mut().or_else(|| self.service.reactor.protocol_mut().printer())
    }

    /// When the process is to have ended: what is left to be said after a run is not waited for any longer.
    pub fn finish_by(&self) -> Instant {
        self.finish_by.unwrap_or_else(Instant::now)
    }

    /// Serves until a signal or the accept limit ends it.
    ///
    /// # Errors
    ///
    /// If the poll fails, which it does not in a process that leaves the server's descriptors alone.
    pub fn run(&mut self) -> io::Result<Ending> {
        self.signals.watch(true);
        let endpoints: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
        self.supervisor.ready(&format!("serving on {}", endpoints.join(", ")), Instant::now());
        while !self.is_done() {
            let before = Instant::now();
            let sleep = self.sleep(before);
            let (now, ready) = self.poller.wait(sleep)?;
            self.asleep += now.saturating_duration_since(before);
            let mut signalled = false;
            let (datagrams, admin) = (&mut self.datagrams, &mut self.admin);
            self.service.turn(
                now,
                ready.filter(|readiness| {
                    if tokens::is_echo(readiness.token) {
                        return true;
                    }
                    signalled |= readiness.token == signals::TOKEN;
                    let elsewhere = readiness.token == signals::TOKEN
                        || datagrams.mark(readiness)
                        || admin.as_mut().is_some_and(|admin| admin.mark(readiness));
                    !elsewhere
                }),
            );
            self.turn_others(now);
            if signalled && let Some(ending) = self.take_signals(now) {
                return Ok(ending);
            }
        }
        if !self.stopping {
            self.supervisor.stopping(Instant::now()); // no signal has ended it, but the accept limit
        }
        self.finish();
        Ok(Ending::Stopped)
    }

    /// Sees to it that what is left to be printed is printed, within the one drain timeout that a stop has. Nobody
    /// watches the poll any more: a signal ends the process at once.
    fn finish(&mut self) {
        self.signals.watch(false);
        self.admin = None;
        let until = self.service.deadline.unwrap_or_else(|| Instant::now() + self.service.drain_timeout);
        self.finish_by = Some(until);
        if let Some(printer) = self.printer() {
            printer.finish(until);
        }
    }

    /// What is on the poll beside the echo over streams has its turn.
    fn turn_others(&mut self, now: Instant) {
        let echo = self.service.reactor.protocol_mut();
        self.datagrams.turn(now, |from, bytes| echo.print_datagram(from, bytes));
        echo.flush();
        self.supervisor.turn(now);
        if let Some(mut admin) = self.admin.take() {
            admin.turn(now, self);
            self.admin = Some(admin);
        }
        if self.stats.as_ref().is_some_and(|stats| now >= stats.due()) {
            let summary = self.summary();
            self.stats.iter_mut().for_each(|stats| stats.log(now, summary));
        }
    }

    /// Does what signals ask for. Returns the ending, if one asks for it at once.
    fn take_signals(&mut self, now: Instant) -> Option<Ending> {
        match self.signals.take()? {
            Request::Kill(signal) => Some(Ending::Killed(signal)),
            Request::Stop(signal) => {
                let name = signal_name(signal).unwrap_or_default();
                info!("{name}: sending what is owed, and closing; once more ends at once");
                self.supervisor.stopping(now);
                self.stopping = true;
                let echo = self.service.reactor.protocol_mut();
                self.datagrams.close(now, |from, bytes| echo.print_datagram(from, bytes));
                self.service.stop(now);
                None
            }
        }
    }

    /// How long the poll may sleep; `None`: until something becomes ready.
    fn sleep(&self, now: Instant) -> Option<Duration> {
        let admin = self.admin.as_ref().and_then(|admin| admin.sleep(now));
        let stats = self.stats.as_ref().map(|stats| stats.due().saturating_duration_since(now));
        let sleeps = [self.service.sleep(now), self.datagrams.sleep(), self.supervisor.sleep(now), admin, stats];
        sleeps.into_iter().flatten().min()
    }

    fn is_done(&self) -> bool {
        self.service.is_done() && (!self.datagrams_only || self.datagrams.is_closed())
    }

    /// What it has done so far.
    pub fn summary(&self) -> Summary {
        let over_udp = self.endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Udp(_)));
        let datagrams = over_udp.then(|| (self.datagrams.counters(), self.datagrams.refusals()));
        Summary { datagrams, ..self.service.summary() }
    }
}

impl StatusSource for Server {
    fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            summary: self.summary(),
            messages: self.service.reactor.protocol().messages(),
            max_connections: self.service.acceptor.max_connections() as u64,
            up: now.saturating_duration_since(self.began),
            asleep: self.asleep,
            stopping: self.stopping,
        }
    }

    fn places(&self) -> usize {
        self.service.reactor.places()
    }

    fn activity(&self, place: usize, lately: Duration) -> Option<Activity> {
        self.service.reactor.activity(place, lately)
    }
}

/// The sockets of a server, as they are bound one after the other.
struct Bound<'a> {
    poller: &'a Poller,
    options: &'a SocketOptions,
    listeners: Vec<(Token, Listener)>,
    ports: Vec<(Token, UdpPort)>,
    endpoints: Vec<Endpoint>,
    /// Tokens that others have.
    taken: usize,
}

impl<'a> Bound<'a> {
    fn new(poller: &'a Poller, options: &'a SocketOptions) -> Self {
        Bound { poller, options, listeners: Vec::new(), ports: Vec::new(), endpoints: Vec::new(), taken: 0 }
    }

    fn token(&self) -> Token {
        tokens::source(self.taken + self.listeners.len() + self.ports.len())
    }

    /// Binds to all that an address stands for.
    fn listen(&mut self, address: &Address) -> anyhow::Result<()> {
        let resolved = address.resolve().with_context(|| format!("cannot resolve {address}"))?;
        bind_all(address, &resolved, |endpoint| self.bind(endpoint))
    }

    fn bind(&mut self, endpoint: &Endpoint) -> io::Result<()> {
        let (options, registry, token) = (self.options, self.poller.registry(), self.token());
        match endpoint {
            Endpoint::Tcp(address) => self.add(token, Listener::tcp(*address, options, registry, token)?),
            Endpoint::Unix(path) => self.add(token, Listener::unix(path, options, registry, token)?),
            Endpoint::Udp(address) => self.add_port(token, UdpPort::bind(*address, options, registry, token)?),
        }
    }

    /// Takes over a socket that is bound already.
    fn inherit(&mut self, socket: Inherited) -> io::Result<()> {
        let (options, registry, token) = (self.options, self.poller.registry(), self.token());
        match socket {
            Inherited::Tcp(socket) => self.add(token, Listener::inherited_tcp(socket, options, registry, token)?),
            Inherited::Unix(socket) => self.add(token, Listener::inherited_unix(socket, options, registry, token)?),
            Inherited::Udp(socket) => self.add_port(token, UdpPort::inherited(socket, registry, token)?),
        }
    }

    fn add(&mut self, token: Token, listener: Listener) -> io::Result<()> {
        self.endpoints.push(listener.endpoint()?);
        self.listeners.push((token, listener));
        Ok(())
    }

    fn add_port(&mut self, token: Token, port: UdpPort) -> io::Result<()> {
        self.endpoints.push(Endpoint::Udp(port.local_addr()?));
        self.ports.push((token, port));
        Ok(())
    }
}

/// Binds to all endpoints of an address. A name may well stand for addresses that this machine does not have, as
/// `localhost` does for ::1 where IPv6 is off: those are left out, as long as there is another.
fn bind_all(
    asked: &Address,
    resolved: &[Endpoint],
    mut bind: impl FnMut(&Endpoint) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut absent = Vec::new();
    for endpoint in resolved {
        match bind(endpoint).with_context(|| format!("cannot listen on {}", describe(asked, endpoint))) {
            Ok(()) => {}
            Err(error) if error.downcast_ref().is_some_and(is_absent) => absent.push(error),
            Err(error) => return Err(error),
        }
    }
    if absent.len() == resolved.len() {
        return absent.into_iter().next().map_or(Ok(()), Err);
    }
    absent.iter().for_each(|error| warn!("{error:#}; its other addresses are served"));
    Ok(())
}

/// Whether an address cannot be bound to because this machine does not have it, or not its family (bind(2), ip(7)).
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT];
    absent.map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error())
}

/// An address as it was asked for, and as it was resolved if that says more.
fn describe(asked: &Address, found: &Endpoint) -> String {
    let (asked, found) = (asked.to_string(), found.to_string());
    if asked == found || format!("tcp:{found}") == asked { found } else { format!("{asked} ({found})") }
}

fn show(limit: Option<u64>) -> String {
    limit.map_or("no limit".to_owned(), |limit| HumanCount(limit).to_string())
}

/// The echo over streams, without the poll: its connections, its listeners, and when it stops.
struct Service<A: Accept> {
    reactor: Reactor<A::Stream, Echo>,
    acceptor: Acceptor<A>,
    drain_timeout: Duration,
    /// When what is left is cut off. Set once stopping has begun.
    deadline: Option<Instant>,
}

impl<A: Accept> Service<A> {
    /// Serves the connections of `listeners`, at most `max_connections` at once. Messages are printed with `printer`.
    pub fn new(config: &Config, listeners: Vec<(Token, A)>, max_connections: usize, printer: Option<Printer>) -> Self {
        let echo = Echo::configured(config, printer);
        let settings = Settings { idle_timeout: config.idle_timeout, ..Settings::default() };
        Service {
            reactor: Reactor::new(echo, settings),
            acceptor: Acceptor::new(listeners, max_connections, config.accept_limit),
            drain_timeout: config.drain_timeout,
            deadline: None,
        }
    }

    /// One turn of the loop: serves what became ready and what was left over, then accepts.
    pub fn turn(&mut self, now: Instant, ready: impl IntoIterator<Item = Readiness>) {
        let acceptor = &mut self.acceptor;
        self.reactor.turn(now, ready.into_iter().filter(|readiness| !acceptor.mark(readiness)));
        self.acceptor.accept(now, &mut self.reactor);
        while let Some((since, token)) = self.reactor.protocol_mut().take_due(now) {
            self.reactor.with(token, |echo, transport, state| echo.judge_late(transport, state, since));
        }
        self.reactor.protocol_mut().flush();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            if !self.reactor.is_empty() {
                warn!("the drain timeout has passed: {} connections are cut", HumanCount(self.reactor.len() as u64));
            }
            self.reactor.abort_all();
        }
    }

    /// How long the poll may sleep before the next turn; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        let until = |then: Instant| then.saturating_duration_since(now);
        let header = self.reactor.protocol().next_due().map(until);
        let sleeps =
            [self.reactor.sleep(now), self.acceptor.sleep(now, &self.reactor), self.deadline.map(until), header];
        sleeps.into_iter().flatten().min()
    }

    /// Stops: no more connections, and those there are are closed once they have been sent what they are owed.
    pub fn stop(&mut self, now: Instant) {
        self.acceptor.close();
        self.reactor.drain();
        self.deadline = Some(now + self.drain_timeout);
    }

    /// Whether there is nothing left to do: no listener, no connection.
    pub fn is_done(&self) -> bool {
        self.acceptor.is_closed() && self.reactor.is_empty()
    }

    /// What it has done so far.
    pub fn summary(&self) -> Summary {
        Summary {
            counters: *self.reactor.counters(),
            accept_pauses: self.acceptor.pauses,
            refusals: self.reactor.protocol().gate.refusals,
            datagrams: None,
        }
    }
}
