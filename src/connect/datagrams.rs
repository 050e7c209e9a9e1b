//! The line client over UDP: each line is a datagram, and what comes back is printed as it arrives.
//!
//! It is a protocol on the one loop for [datagrams](crate::reactor::datagrams). Datagrams may be lost without notice.
//! So only a few are in flight at a time, and those that have not come back when nothing has come for a while are given
//! up, and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use log::debug;
use mio::Token;
use rustix::io::Errno;

use super::console::Console;
use super::input::{Input, Item, without_newline};
use super::race::Failures;
use super::{Config, PROMPT, unexpected};
use crate::count::counted;
use crate::reactor::address::Endpoint;
use crate::reactor::{DatagramProtocol, DatagramSocket, Datagrams, Envelope, Outlet, Sent, Source, UdpPort};

/// Datagrams that may be on their way.
const WINDOW: usize = 16;

/// How long nothing may come until those that are in flight are given up, by default.
const TIMEOUT: Duration = Duration::from_secs(1);

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
    if client.lost > 0 && config.expect.is_none() {
        bail!("{} did not come back", counted(client.lost, "datagram"));
    }
    unexpected(config)
}

/// What has come in a turn, and is to be printed after it.
#[derive(Default)]
struct Reception {
    datagrams: Vec<Vec<u8>>,
    /// The address does not take datagrams. What follows in this turn comes from an address that is given up.
    failure: Option<io::Error>,
}

impl<D: DatagramSocket> DatagramProtocol<D> for Reception {
    fn received(&mut self, _: &mut Outlet<'_, D>, _: &Envelope, bytes: &[u8]) {
        if self.failure.is_none() {
            self.datagrams.push(bytes.to_vec());
        }
    }

    fn failed(&mut self, _: &mut Outlet<'_, D>, error: io::Error) {
        self.failure.get_or_insert(error);
    }
}

struct Client<'a> {
    config: &'a Config,
    datagrams: Datagrams<UdpPort, Reception>,
    /// The one socket, and where it sends to.
    token: Token,
    to: Envelope,
    /// Addresses of the name that have not been tried.
    others: VecDeque<SocketAddr>,
    failures: Failures,
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
    /// The socket may take something.
    writable: bool,
}

impl<'a> Client<'a> {
    fn start(config: &'a Config, console: &mut Console, addresses: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let mut others = VecDeque::from(addresses);
        let mut failures = Failures::default();
        let mut datagrams = Datagrams::new(Reception::default(), 0);
        let next = next_socket(console, &mut datagrams, &mut others, &mut failures);
        let (token, to) = next.ok_or_else(|| failures.explain(&config.address))?;
        if console.interactive {
            let endpoint = Endpoint::Udp(to.from);
            console.screen.say(&format!("sending datagrams to {}\n", super::whom(config, &endpoint)));
        }
        let now = Instant::now();
        Ok(Client {
            config,
            datagrams,
            token,
            to,
            others,
            failures,
            lines: VecDeque::new(),
            ended: false,
            input_failure: None,
            prompted: false,
            away: Vec::new(),
            lost: 0,
            moved_at: now,
            now,
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
            self.datagrams.note(*readiness);
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
        let receives = !console.screen.is_full() && self.may_receive();
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

    /// Whether there may be datagrams to receive.
    fn may_receive(&self) -> bool {
        self.datagrams.sleep(self.now) == Some(Duration::ZERO)
    }

    /// Prints what has come, unless the screen is full: then it waits in the socket, and what finds no room there is lost.
    fn receive(&mut self, console: &mut Console) -> anyhow::Result<()> {
        if console.screen.is_full() {
            if self.may_receive() {
                self.moved_at = self.now; // it is our reader who is slow
            }
            return Ok(());
        }
        self.datagrams.turn(self.now);
        let reception = self.datagrams.protocol_mut();
        for datagram in reception.datagrams.drain(..) {
            console.screen.cut();
            console.screen.received(&datagram);
            if self.config.no_newline {
                console.screen.newline();
            }
            // One that comes twice, or is no echo, is none of another.
            if let Some(at) = self.away.iter().position(|away| *away == datagram) {
                self.away.remove(at);
                self.moved_at = self.now; // others may come without an end
            }
            // This address answers: it is the one.
            self.others.clear();
        }
        match reception.failure.take() {
            Some(error) => self.turn_away(error, console),
            None => Ok(()),
        }
    }

    /// Sends lines, as far as there are some and the window allows.
    fn send(&mut self, input: &mut Input, console: &mut Console) -> anyhow::Result<()> {
        while self.writable && self.away.len() < WINDOW {
            if self.lines.is_empty() && self.takes_input(input) {
                let line = self.next_line(input)?;
                self.lines.extend(line);
            }
            let Some(line) = self.lines.front() else { return Ok(()) };
            match self.datagrams.with(self.token, |_, outlet| outlet.send(line, &self.to)) {
                Some(Sent::Taken) => {
                    self.prompted = false;
                    self.moved_at = self.now;
                    self.away.extend(self.lines.pop_front());
                }
                Some(Sent::NoRoom) | None => self.writable = false,
                Some(Sent::Failed(error)) if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => {
                    bail!(too_long())
                }
                Some(Sent::Failed(error)) => self.turn_away(error, console)?,
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
        self.failures.0.push((Endpoint::Udp(self.to.from), error));
        self.datagrams.remove(self.token);
        let next = next_socket(console, &mut self.datagrams, &mut self.others, &mut self.failures);
        let Some((token, to)) = next else { bail!(self.failures.explain(&self.config.address)) };
        (self.token, self.to) = (token, to);
        (self.writable, self.moved_at) = (true, self.now);
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
fn next_socket(
    console: &Console,
    datagrams: &mut Datagrams<UdpPort, Reception>,
    addresses: &mut VecDeque<SocketAddr>,
    failures: &mut Failures,
) -> Option<(Token, Envelope)> {
    while let Some(address) = addresses.pop_front() {
        match datagrams.add(|token| UdpPort::connect(address, None, console.registry(), token)) {
            Ok(token) => {
                debug!("sending datagrams to {address}");
                return Some((token, Envelope::from(address)));
            }
            Err(error) => failures.0.push((Endpoint::Udp(address), error)),
        }
    }
    None
}
