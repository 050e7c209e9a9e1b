//! What the driver needs of the machine it runs on: sockets, a poll, signals.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mio::Token;

use super::config::Config;
use super::dial::{self, Route};
use super::load::{MAX_DATAGRAM, NUMBER};
use crate::count::counted;
use crate::limits;
use crate::reactor::address::Endpoint;
use crate::reactor::socket::Socket;
use crate::reactor::{DatagramSocket, Poller, Readiness, Settings, Stream, UdpPort};
use crate::signals::{self, Request, StopSignals};

/// The most datagrams in flight on each socket in a closed loop. More would overflow the receive buffer and be
/// lost there.
const MAX_DATAGRAMS: u64 = 64;

/// The world as the driver sees it.
pub(super) trait World {
    type Stream: Stream;
    type Port: DatagramSocket;

    /// How reactors behave in it, sizes apart.
    fn settings() -> Settings {
        Settings::default()
    }

    /// The clock to read.
    fn clock() -> fn() -> Instant;

    /// Begins to open a connection for a slot, with `token` in the poll.
    fn dial(&mut self, index: u32, token: Token) -> io::Result<Self::Stream>;

    /// Opens a socket for a slot's datagrams, with `token` in the poll. Returns where they go, too.
    fn bind(&mut self, index: u32, token: Token) -> io::Result<(Self::Port, SocketAddr)>;

    /// Why a slot's socket could not be opened, in words.
    fn explain(&self, _index: u32, error: &io::Error) -> String {
        error.to_string()
    }

    /// The addresses that slots dial, in turn.
    fn addresses(&self) -> Vec<String>;

    /// Has all slots dial the one address with this number; `None`: all of them in turn.
    fn choose(&mut self, _address: Option<usize>) {}

    /// Waits until something becomes ready, or `sleep` is over, and adds what became ready. Returns the time, and whether
    /// somebody asks for the end.
    fn wait(&mut self, sleep: Duration, ready: &mut Vec<Readiness>) -> io::Result<(Instant, Option<Request>)>;
}

/// The poll, and the signals on it. To be called before anything that may take long, as the resolver may: from here on
/// a signal ends the process, process 1 too.
pub(super) fn take_signals(config: &Config) -> anyhow::Result<(Poller, StopSignals)> {
    let poller = Poller::new(config.busy_poll).context("cannot make a poll")?;
    let signals = StopSignals::new(poller.registry())?;
    Ok((poller, signals))
}

/// The machine.
pub(super) struct Machine {
    poller: Poller,
    signals: StopSignals,
    routes: Vec<Route>,
    chosen: Option<usize>,
    dialled: usize,
    pub open_files: Option<u64>,
}

impl Machine {
    /// Makes sure that what is asked for can be had, before anything is opened.
    pub fn new(config: &Config, (poller, signals): (Poller, StopSignals), routes: Vec<Route>) -> anyhow::Result<Self> {
        let open_files = limits::raise_open_files();
        check_target(config, &routes[0].target)?;
        let routes = match routes[0].target {
            Endpoint::Udp(_) if routes.len() > 1 && !config.all_addresses => {
                let cannot = || format!("cannot send to {}", config.address);
                vec![dial::answering(routes, config.timeout).with_context(cannot)?]
            }
            _ => routes,
        };
        // One for the window, and one for the waiting after it.
        signals.allow_stops(2);
        signals.watch(true);
        let all = config.connections + config.idle;
        dial::check_descriptors(all, limits::room(open_files), open_files)?;
        let each = if config.all_addresses { all.div_ceil(routes.len()) } else { all };
        for route in routes.iter().filter(|route| !matches!(route.target, Endpoint::Unix(_))) {
            dial::check_ports(each, &route.sources)?;
        }
        Ok(Machine { poller, signals, routes, chosen: None, dialled: 0, open_files })
    }

    /// Whether it sends datagrams.
    pub fn is_datagrams(&self) -> bool {
        matches!(self.routes[0].target, Endpoint::Udp(_))
    }

    /// How many connections may be being closed while their slots have others already.
    pub fn max_closing(&self, config: &Config) -> usize {
        limits::room(self.open_files).saturating_sub(config.connections + config.idle)
    }

    /// The route of a slot, and the number of its latest connection among those that take that route.
    fn route(&self, index: u32) -> (&Route, usize) {
        let number = self.dialled.saturating_sub(1);
        match self.chosen {
            Some(chosen) => (&self.routes[chosen], number),
            None => (&self.routes[index as usize % self.routes.len()], number / self.routes.len()),
        }
    }
}

impl Drop for Machine {
    /// Nobody looks at signals any more: while results are written, one ends the process.
    fn drop(&mut self) {
        self.signals.watch(false);
    }
}

impl World for Machine {
    type Stream = Socket;
    type Port = UdpPort;

    fn clock() -> fn() -> Instant {
        Instant::now
    }

    fn dial(&mut self, index: u32, token: Token) -> io::Result<Socket> {
        self.dialled += 1;
        let (route, number) = self.route(index);
        let mut stream = match &route.target {
            Endpoint::Tcp(address) | Endpoint::Udp(address) => {
                Socket::connect_tcp(*address, route.sources.nth(number))?
            }
            Endpoint::Unix(path) => Socket::connect_unix(path)?,
        };
        self.poller.registry().register(&mut stream, token, Poller::interest())?;
        Ok(stream)
    }

    fn bind(&mut self, index: u32, token: Token) -> io::Result<(UdpPort, SocketAddr)> {
        self.dialled += 1;
        let (route, number) = self.route(index);
        let (Endpoint::Udp(target) | Endpoint::Tcp(target)) = route.target else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let socket = UdpPort::connect(target, route.sources.nth(number), self.poller.registry(), token)?;
        Ok((socket, target))
    }

    fn explain(&self, index: u32, error: &io::Error) -> String {
        let (route, number) = self.route(index);
        dial::explain(error, route, number)
    }

    fn addresses(&self) -> Vec<String> {
        let routes = self.routes.iter().enumerate();
        let chosen = routes.filter(|(number, _)| self.chosen.is_none_or(|chosen| chosen == *number));
        chosen.map(|(_, route)| route.target.to_string()).collect()
    }

    fn choose(&mut self, address: Option<usize>) {
        (self.chosen, self.dialled) = (address, 0);
    }

    fn wait(&mut self, sleep: Duration, ready: &mut Vec<Readiness>) -> io::Result<(Instant, Option<Request>)> {
        let (now, events) = self.poller.wait(Some(sleep))?;
        let before = ready.len();
        ready.extend(events);
        let mut request = None;
        if let Some(at) = ready[before..].iter().position(|readiness| readiness.token == signals::TOKEN) {
            ready.swap_remove(before + at);
            request = self.signals.take();
        }
        Ok((now, request))
    }
}

/// Makes sure that what is asked for can be had of this kind of target.
fn check_target(config: &Config, target: &Endpoint) -> anyhow::Result<()> {
    if !matches!(target, Endpoint::Udp(_)) {
        return Ok(());
    }
    let (smallest, largest) = config.size;
    let (least, most) = (NUMBER as u64, MAX_DATAGRAM as u64);
    ensure!(
        smallest >= least && largest <= most,
        "a datagram has {}, in which it carries its number, to {most}: {smallest} to {largest} cannot be (--size)",
        counted(least, "byte")
    );
    ensure!(
        config.depth <= MAX_DATAGRAMS,
        "{} in flight on each socket are more than there is room for where they are received: at most \
         {MAX_DATAGRAMS} (--depth)",
        counted(config.depth, "datagram")
    );
    ensure!(config.reconnect.is_none(), "datagrams have no connections to close and to open again (--reconnect)");
    ensure!(config.idle == 0, "datagrams have no connections to hold idle (--idle)");
    Ok(())
}
