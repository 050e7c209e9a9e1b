//! The line client over UDP: each line is a datagram, and what comes back is printed as it arrives.
//!
//! Datagrams may be lost without notice. So only a few are in flight at a time, and those that have not come back
//! when nothing has come for a while are given up, and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::Token;
use mio::net::UdpSocket;
use rustix::io::Errno;

use super::console::Console;
use super::input::{Input, Item, without_newline};
use super::race::Failures;
use super::{Config, PROMPT, unexpected};
use crate::count::counted;
use crate::reactor::Poller;
use crate::reactor::address::Endpoint;

const SOCKET: Token = Token(0);

/// Datagrams that may be on their way.
const WINDOW: usize = 16;

/// How long nothing may come until those that are in flight are given up, by default.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The longest datagram (RFC 768).
const LONGEST: usize = 65_535;

/// Runs until everything has been sent and has come back, or is lost.
///
/// # Errors
///
/// If nobody listens, a line is too long, datagrams were lost, or standard input or output fail.
pub(super) fn run(config: &Config, console: &mut Console, addresses: Vec<SocketAddr>) -> anyhow::Result<()> {
    let mut client = Client::start(config, console, addresses)?;
    let mut input = console.input(config)?;
    loop {
        let sleep = client.sleep(&input, console);
        let now = console.wait(sleep)?;
        input.refill();
        client.turn(now, &mut input, console)?;
        if client.is_done(console) {
            break;
        }
    }
    if client.prompted {
        console.screen.say("\n"); // what comes next is the shell's prompt
    }
    console.flush()?;
    if console.screen.expected() == Some(true) {
        return Ok(());
    }
    if let Some(error) = client.input_failure {
        return Err(error).context("cannot read standard input");
    }
    if client.lost > 0 {
        bail!("{} did not come back", counted(client.lost, "datagram"));
    }
    unexpected(config)
}

struct Client<'a> {
    config: &'a Config,
    socket: UdpSocket,
    /// Addresses of the name that have not been tried.
    others: VecDeque<SocketAddr>,
    failures: Failures,
    buffer: Box<[u8]>,
    /// Lines that are to be sent before the input's next one.
    lines: VecDeque<Vec<u8>>,
    /// No line will follow.
    ended: bool,
    input_failure: Option<io::Error>,
    prompted: bool,
    /// Datagrams that are on their way, in their order, and how many were given up.
    away: Vec<Vec<u8>>,
    lost: u64,
    /// When the last datagram went or came.
    moved_at: Instant,
    now: Instant,
    /// The socket may have something to read, and may take something: see the events that it is registered for.
    readable: bool,
    writable: bool,
}

impl<'a> Client<'a> {
    fn start(config: &'a Config, console: &mut Console, addresses: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let mut others = VecDeque::from(addresses);
        let mut failures = Failures::default();
        let socket =
            next_socket(console, &mut others, &mut failures).ok_or_else(|| failures.explain(&config.address))?;
        if console.interactive {
            let text = format!("sending datagrams to {}; {}\n", config.address, super::how_to_end(config));
            console.screen.say(&text);
        }
        let now = Instant::now();
        Ok(Client {
            config,
            socket,
            others,
            failures,
            buffer: vec![0; LONGEST].into_boxed_slice(),
            lines: VecDeque::new(),
            ended: false,
            input_failure: None,
            prompted: false,
            away: Vec::new(),
            lost: 0,
            moved_at: now,
            now,
            readable: true,
            writable: true,
        })
    }

    fn is_done(&self, console: &Console) -> bool {
        console.screen.expected() == Some(true)
            || (self.ended && self.lines.is_empty() && self.away.is_empty() && !self.listens(console))
    }

    /// Whether it waits for what nobody was asked for.
    fn listens(&self, console: &Console) -> bool {
        console.screen.expected() == Some(false) && !self.is_overdue()
    }

    /// Makes the steps that can be made.
    fn turn(&mut self, now: Instant, input: &mut Input, console: &mut Console) -> anyhow::Result<()> {
        self.now = now;
        for readiness in &console.ready {
            self.readable |= readiness.readable;
            self.writable |= readiness.writable;
        }
        self.receive(console)?;
        if self.is_overdue() && !self.away.is_empty() {
            if self.others.is_empty() {
                self.lost += self.away.drain(..).len() as u64;
            } else {
                let text = format!("no answer within {}", humantime::format_duration(self.timeout()));
                self.turn_away(io::Error::new(ErrorKind::TimedOut, text), console)?;
            }
        }
        self.send(input, console)?;
        self.prompt(input, console);
        Ok(())
    }

    /// How long nothing can be done unless something happens.
    fn sleep(&self, input: &Input, console: &Console) -> Option<Duration> {
        let sends = self.writable && self.away.len() < WINDOW && (!self.lines.is_empty() || self.takes_input(input));
        let receives = self.readable && !console.screen.is_full();
        if sends || receives || self.is_prompt_due(input, console) {
            return Some(Duration::ZERO);
        }
        let waits = !self.away.is_empty() || (self.ended && self.listens(console));
        waits.then(|| (self.moved_at + self.timeout()).saturating_duration_since(self.now))
    }

    fn timeout(&self) -> Duration {
        self.config.timeout.unwrap_or(TIMEOUT)
    }

    fn is_overdue(&self) -> bool {
        self.now >= self.moved_at + self.timeout()
    }

    fn takes_input(&self, input: &Input) -> bool {
        !self.ended && input.peek().is_some()
    }

    /// Prints what has come.
    fn receive(&mut self, console: &mut Console) -> anyhow::Result<()> {
        for _ in 0..WINDOW {
            if !self.readable {
                break;
            }
            if console.screen.is_full() {
                self.moved_at = self.now; // it is our reader who is slow
                break;
            }
            match self.socket.recv(&mut self.buffer) {
                Ok(length) => {
                    console.screen.cut();
                    console.screen.received(&self.buffer[..length]);
                    if self.config.no_newline {
                        console.screen.newline();
                    }
                    // One that comes twice, or is no echo, is none of another.
                    let echo = &self.buffer[..length];
                    if let Some(at) = self.away.iter().position(|away| away == echo) {
                        self.away.remove(at);
                    }
                    self.moved_at = self.now;
                    // This address answers: it is the one.
                    self.others.clear();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.turn_away(error, console)?,
            }
        }
        Ok(())
    }

    /// Sends lines, as far as there are some and the window allows.
    fn send(&mut self, input: &mut Input, console: &mut Console) -> anyhow::Result<()> {
        while self.writable && self.away.len() < WINDOW {
            if self.lines.is_empty() && self.takes_input(input) {
                let line = self.next_line(input)?;
                self.lines.extend(line);
            }
            let Some(line) = self.lines.front() else { return Ok(()) };
            match self.socket.send(line) {
                Ok(_) => {
                    self.prompted = false;
                    self.moved_at = self.now;
                    self.away.extend(self.lines.pop_front());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => bail!(too_long()),
                Err(error) => self.turn_away(error, console)?,
            }
        }
        Ok(())
    }

    fn next_line(&mut self, input: &mut Input) -> anyhow::Result<Option<Vec<u8>>> {
        match input.take() {
            Some(Item::Piece { bytes, line_ends }) => {
                ensure!(line_ends, too_long());
                let bare = without_newline(&bytes);
                self.ended = self.config.is_terminator(bare);
                return Ok(Some(if self.config.no_newline { bare.to_vec() } else { bytes }));
            }
            Some(Item::Failed(error)) => (self.ended, self.input_failure) = (true, Some(error)),
            Some(Item::End) => self.ended = true,
            None => {}
        }
        Ok(None)
    }

    /// This address does not take datagrams: nobody listens there, as its kernel has said (udp(7), on errors of earlier
    /// datagrams), there is no route, or nothing has ever come from there. The name's next one gets what was sent in vain.
    fn turn_away(&mut self, error: io::Error, console: &mut Console) -> anyhow::Result<()> {
        let endpoint = Endpoint::Udp(self.socket.peer_addr()?);
        self.failures.0.push((endpoint, error));
        let Some(socket) = next_socket(console, &mut self.others, &mut self.failures) else {
            bail!(self.failures.explain(&self.config.address));
        };
        self.socket = socket;
        (self.readable, self.writable, self.moved_at) = (true, true, self.now);
        for line in self.away.drain(..).rev() {
            self.lines.push_front(line);
        }
        Ok(())
    }

    fn is_prompt_due(&self, input: &Input, console: &Console) -> bool {
        let waits = self.away.is_empty() && self.lines.is_empty() && !self.ended && input.peek().is_none();
        console.interactive && waits && !self.prompted
    }

    fn prompt(&mut self, input: &Input, console: &mut Console) {
        if self.is_prompt_due(input, console) {
            self.prompted = true;
            console.screen.say(PROMPT);
        }
    }
}

fn too_long() -> String {
    format!("a line is longer than a datagram can be, which is {} with its newline", counted(65_507_u64, "byte"))
}

/// A socket for the first of `addresses` that there is a way to.
fn next_socket(console: &Console, addresses: &mut VecDeque<SocketAddr>, failures: &mut Failures) -> Option<UdpSocket> {
    while let Some(address) = addresses.pop_front() {
        let opened = open(address).and_then(|mut socket| {
            console.registry().register(&mut socket, SOCKET, Poller::interest())?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => return Some(socket),
            Err(error) => failures.0.push((Endpoint::Udp(address), error)),
        }
    }
    None
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let connected = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        io::Result::Ok(socket)
    };
    let socket = connected()?;
    if socket.local_addr()? != address {
        return Ok(socket);
    }
    // The port that we got is the one that is asked: nobody listens, and we would answer ourselves. While it is open, we
    // get another, if there is one.
    connected().map_err(|_| ErrorKind::ConnectionRefused.into())
}
