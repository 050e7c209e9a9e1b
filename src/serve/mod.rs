//! The echo server: one thread, one poll, any number of connections.
//!
//! [`Server`] binds the sockets, takes signals into the loop and polls. What it does between two polls is `service`'s: the
//! echo over streams (`echo`, on the [reactor](crate::reactor)) and over datagrams (`datagrams`), access control
//! (`access`, `proxy`), and what an operator can look at (`admin`).

pub mod access;
pub mod admin;
mod config;
mod datagrams;
pub mod echo;
mod fault;
mod logged;
mod printer;
mod proxy;
pub mod service;
#[cfg(test)]
mod simulation;
mod sockets;
mod stats;
mod supervisor;
#[cfg(test)]
mod tests;
mod tokens;

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::HumanCount;
use log::{debug, info, trace, warn};
use signal_hook::low_level::signal_name;

use crate::count::counted;
use crate::reactor::address::{DEFAULT, Endpoint};
use crate::reactor::socket::Socket;
use crate::reactor::{Poller, Source, UdpPort, check_backlog, shortest};
use crate::signals::{Request, StopSignals};
use crate::values::show_micros;
use crate::{escape, limits, stdio};
use admin::Admin;
use echo::SharedPrinter;
use fault::SharedCounters;
use printer::Printer;
use service::Service;
use sockets::Binder;
use supervisor::Supervisor;
use tokens::Owner;

pub use access::{AccessOptions, Refusal, Refusals};
pub use config::{Config, Print};
pub use echo::StreamService;
pub use echo::{Echo, Session};
pub use fault::{Fault, FaultCounters, FaultOptions, Faulty, Greeting};
pub use stats::Summary;

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A signal or the accept limit ended it, and what was owed has been sent as far as the time allowed.
    Stopped,
    /// A second signal, this one, ended it at once.
    Killed(i32),
}

/// A server that listens.
pub struct Server<P: StreamService<Socket> = Echo> {
    poller: Poller,
    signals: StopSignals,
    supervisor: Supervisor,
    endpoints: Vec<Endpoint>,
    service: Service<Socket, UdpPort, P>,
    /// Says where it listens, and prints messages where that is asked for.
    printer: SharedPrinter,
    /// When the process is to have ended, however it ends.
    finish_by: Option<Instant>,
    freezing: Option<Freezing>,
}

/// When the whole loop stands still, on request.
struct Freezing {
    length: Duration,
    every: Duration,
    next: Instant,
}

impl Server {
    /// Listens on all addresses of `config` and takes over the signals that end it: see [`StopSignals`]. Raises the limit
    /// on open files.
    ///
    /// # Errors
    ///
    /// If one of the addresses cannot be had: an error that names it and the cause.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        Server::bind_with(config, |printer| (config.echo(printer), None))
    }
}

impl Server<Faulty> {
    /// As [`Server::bind`], but what it serves misbehaves as `config` says, or says who it is.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_faulty(config: &Config) -> anyhow::Result<Self> {
        let counters = SharedCounters::default();
        let mut server = Server::bind_with(config, |printer| {
            (Faulty::new(config.echo(printer), &config.faults, counters.clone()), Some(counters))
        })?;
        let port = server.endpoints.iter().find_map(|endpoint| match endpoint {
            Endpoint::Tcp(address) => Some(address.port()),
            _ => None,
        });
        server.service.streams.protocol_mut().set_port(port);
        if !config.faults.fault.is_empty() {
            server.poller.wait_exactly();
            let faults: Vec<_> = config.faults.fault.iter().map(ToString::to_string).collect();
            let seed = config.faults.fault_seed;
            warn!("THIS SERVER MISBEHAVES ON REQUEST: --fault {} (seed {seed})", faults.join(" --fault "));
            if server.endpoints.iter().all(|endpoint| matches!(endpoint, Endpoint::Udp(_))) {
                for fault in config.faults.about_streams_alone() {
                    warn!("--fault {fault} has no effect: it is about connections, and datagrams have none");
                }
            }
        }
        Ok(server)
    }
}

impl<P: StreamService<Socket>> Server<P> {
    fn bind_with(
        config: &Config,
        make: impl FnOnce(Option<SharedPrinter>) -> (P, Option<SharedCounters>),
    ) -> anyhow::Result<Self> {
        let limit = limits::raise_open_files();
        // First of all, for every descriptor that is opened before could be taken for one that was handed over.
        let inherited = supervisor::inherited()?;
        let poller = Poller::new(config.busy_poll).context("cannot make a poll")?;
        let signals = StopSignals::new(poller.registry())?;
        check_backlog(config.sockets.backlog);
        let printer = Rc::new(RefCell::new(Printer::new(stdio::stdout()).context("cannot print")?));
        let prints = config.prints().then(|| printer.clone());
        let (protocol, faults) = make(prints.clone());
        let mut service = Service::around(protocol, faults, config, prints, Instant::now());
        let mut binder = Binder {
            poller: &poller,
            options: &config.sockets,
            streams: &mut service.streams,
            datagrams: &mut service.datagrams,
            endpoints: Vec::new(),
        };
        for socket in inherited {
            binder.inherit(socket).context("cannot use LISTEN_FDS")?;
        }
        for address in &config.addresses {
            binder.bind(address)?;
        }
        if binder.endpoints.is_empty() {
            binder.bind(&DEFAULT.parse()?)?;
        }
        let endpoints = binder.endpoints;
        let own_ports = endpoints.iter().filter_map(|endpoint| match endpoint {
            Endpoint::Udp(address) => Some(address.port()),
            _ => None,
        });
        service.datagrams.protocol_mut().gate.set_own_ports(own_ports.collect());
        service.endpoints.clone_from(&endpoints);
        let mut admin = Admin::new(admin::MAX_CONNECTIONS);
        sockets::bind_admin(&mut admin, &config.http, &poller)?;
        let mut room = limits::room(limit);
        if !config.http.is_empty() {
            // Those who look take no more than a quarter of what there is.
            let share = admin::MAX_CONNECTIONS.min(room / 4).max(1);
            room = room.saturating_sub(share);
            admin.reactor.set_max_connections(share);
            service.admin = Some(admin);
        }
        ensure!(
            room > 0 || !service.streams.is_listening(),
            "the limit on open files, {}, leaves no room for a connection: raise it (ulimit -n)",
            show(limit)
        );
        let asked = config.max_connections.unwrap_or(room);
        // Those who look in when descriptors have run out need one each, so the connections leave them theirs.
        let max_connections = if service.admin.is_some() { asked.min(room) } else { asked };
        service.streams.set_max_connections(max_connections);
        info!("echoloop {}, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
        info!("room for {} (open files: at most {})", counted(max_connections, "connection"), show(limit));
        if max_connections > room {
            warn!("but the limit on open files leaves room for {}: raise it (ulimit -n)", HumanCount(room as u64));
        } else if asked > room {
            warn!(
                "for {} the limit on open files is too low: raise it (ulimit -n); --http has its share of it",
                counted(asked, "connection")
            );
        }
        let supervisor = Supervisor::new();
        // All that may take long is done: from the lines that say where it listens a reader concludes that it serves.
        signals.watch(true);
        let freezing = config.faults.freezing();
        let freezing = freezing.map(|(length, every)| Freezing { length, every, next: Instant::now() + every });
        Ok(Server { poller, signals, supervisor, endpoints, service, printer, finish_by: None, freezing })
    }

    /// Where it listens, with the real ports.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Where the admin interface listens.
    pub fn http_endpoints(&self) -> &[Endpoint] {
        self.service.admin.as_ref().map_or(&[], Admin::endpoints)
    }

    /// Prints where it listens, a line each, with the real ports. Does not wait until they are read.
    pub fn announce(&mut self) {
        let mut lines: Vec<_> = self.endpoints().iter().map(|endpoint| format!("listening on {endpoint}")).collect();
        lines.extend(self.http_endpoints().iter().map(|endpoint| match endpoint {
            Endpoint::Tcp(address) => format!("inside: http://{address}/"),
            other => format!("inside: {other}"),
        }));
        // A path may hold anything, and a line is a line.
        let lines: Vec<_> = lines.iter().map(|line| escape::text(line).to_string()).collect();
        // Standard output may lead nowhere.
        lines.iter().for_each(|line| debug!("{line}"));
        let mut printer = self.printer.borrow_mut();
        lines.iter().for_each(|line| printer.print(|out| writeln!(out, "{line}")));
        printer.flush();
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
        let endpoints: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
        let endpoints = escape::text(&endpoints.join(", ")).to_string();
        self.supervisor.ready(&format!("serving on {endpoints}"), Instant::now());
        while !self.service.is_done() {
            let before = Instant::now();
            let freeze = self.freezing.as_ref().map(|it| it.next.saturating_duration_since(before));
            let sleep = shortest([self.service.sleep(before), self.supervisor.sleep(before), freeze]);
            let (now, events) = self.poller.wait(sleep)?;
            let asleep = now.saturating_duration_since(before);
            self.service.asleep += asleep;
            let (mut signalled, mut count) = (false, 0);
            for readiness in events {
                count += 1;
                match Owner::of(readiness.token) {
                    Owner::Signals => signalled = true,
                    _ => self.service.note(readiness),
                }
            }
            if let Some(freezing) = self.freezing.as_mut().filter(|it| now >= it.next) {
                freezing.next += freezing.every;
                self.service.count_fault(|counters| counters.freezes += 1);
                debug!("fault: frozen for {:?}", freezing.length);
                thread::sleep(freezing.length);
            }
            trace!(
                "turn {}: slept {}, {}, {} ready",
                self.service.streams.counters().turns + 1,
                show_micros(asleep.as_secs_f64() * 1e6),
                counted(count, "event"),
                self.service.ready()
            );
            self.service.turn(now);
            self.supervisor.turn(now);
            if signalled && let Some(ending) = self.take_signals(now) {
                return Ok(ending);
            }
        }
        if !self.service.is_stopping() {
            let now = Instant::now(); // no signal has ended it, but the accept limit
            self.supervisor.stopping(self.service.finish_by(now), now);
        }
        self.finish();
        Ok(Ending::Stopped)
    }

    /// Sees to it that what is left to be printed is printed, within the one drain timeout that a stop has. Nobody
    /// watches the poll any more: a signal ends the process at once.
    fn finish(&mut self) {
        self.signals.watch(false);
        self.service.admin = None;
        let until = self.service.finish_by(Instant::now());
        self.finish_by = Some(until);
        self.printer.borrow_mut().finish(until);
    }

    /// Does what signals ask for. Returns the ending, if one asks for it at once.
    fn take_signals(&mut self, now: Instant) -> Option<Ending> {
        match self.signals.take()? {
            Request::Kill(signal) => {
                self.service.abort();
                Some(Ending::Killed(signal))
            }
            Request::Stop(signal) => {
                let name = signal_name(signal).unwrap_or_default();
                let delay = self.service.stop_delay;
                match delay.is_zero() {
                    true => info!("{name}: sending what is left to send, and closing; a second signal ends at once"),
                    false => info!(
                        "{name}: stopping in {}, and serving until then; a second signal ends at once",
                        humantime::format_duration(delay)
                    ),
                }
                let end = self.service.stop(now);
                self.supervisor.stopping(end, now);
                None
            }
        }
    }

    /// What it has done so far.
    pub fn summary(&self) -> Summary {
        self.service.summary()
    }
}

fn show(limit: Option<u64>) -> String {
    limit.map_or("no limit".to_owned(), |limit| HumanCount(limit).to_string())
}
