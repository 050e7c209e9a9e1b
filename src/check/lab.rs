//! Where experiments are made: connections and datagrams of ours on the reactor, and waiting for what comes of them.
//!
//! An experiment is written as a story (connect, send, await the echo), and each step of it that waits runs the loop until
//! what is waited for has come, or nothing has moved for as long as patience lasts. Everything that is sent is remembered
//! until it has come back, so every byte is verified, in all experiments alike.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use log::debug;
use mio::Token;

use super::verdict::{Finding, Limits, Outcome, Stop, Trouble};
use crate::count::counted;
use crate::reactor::address::Endpoint;
use crate::reactor::socket::Socket;
use crate::reactor::{
    CloseReason, DatagramProtocol, Datagrams, Envelope, Outlet, Poller, Protocol, Reactor, Sent, Settings, Source,
    Transport, UdpPort, shortest,
};
use crate::signals::{self, Request, StopSignals};

/// The first token of datagram sockets.
const DATAGRAMS: usize = 2 * Settings::TOKENS;

/// What was done where no connection came about.
pub(super) const CONNECT: &str = "a connection attempt";

/// How long those that are closed in good order may take for it, between two experiments.
const FAREWELL: Duration = Duration::from_millis(300);

/// The least of that, for services that are known to take longer.
const MIN_FAREWELL: Duration = Duration::from_millis(20);

/// Bytes shown of what was sent and of what came.
const SHOWN: usize = 24;

/// The buffers of a connection that does not read: small, so that it is soon known what the service does about it.
const SMALL_BUFFER: usize = 16 * 1024;

/// The receive buffer of a connection that reads after it has not.
const READ_BUFFER: usize = 1024 * 1024;

/// A connection of ours, and what has become of it.
#[derive(Debug, Default)]
pub(super) struct Line {
    token: Option<Token>,
    opened: bool,
    /// It is not read until that is asked for: since when.
    paused: Option<Instant>,
    /// What was sent and has not come back.
    expected: VecDeque<u8>,
    /// Bytes that are said first by whoever answers, and are no echo.
    greeting: usize,
    sent: u64,
    pub received: u64,
    pub mismatch: Option<Mismatch>,
    /// What came though nothing was to come, as far as it is shown.
    pub extra: Vec<u8>,
    pub ended: bool,
    pub closed: Option<String>,
}

/// The first byte that is not what was sent.
#[derive(Debug)]
pub(super) struct Mismatch {
    at: u64,
    expected: Vec<u8>,
    got: Vec<u8>,
    /// How many bytes of what was sent are missing in front of what came, if that is what happened.
    lost: Option<usize>,
}

impl Line {
    fn take(&mut self, bytes: &[u8]) {
        let greeting = bytes.len().min(self.greeting);
        self.greeting -= greeting;
        let bytes = &bytes[greeting..];
        // Nearly always all of it is as it should be, and in one piece.
        if self.expected.as_slices().0.get(..bytes.len()) == Some(bytes) {
            self.expected.drain(..bytes.len());
            self.received += bytes.len() as u64;
            return;
        }
        for (at, byte) in bytes.iter().enumerate() {
            let rest = &bytes[at..];
            match self.expected.front() {
                Some(expected) if expected == byte => {
                    self.expected.pop_front();
                    self.received += 1;
                }
                Some(_) => {
                    if self.mismatch.is_none() {
                        self.mismatch = Some(self.explain(rest));
                    }
                    return;
                }
                None => {
                    let room = SHOWN.saturating_sub(self.extra.len());
                    self.extra.extend(&rest[..rest.len().min(room)]);
                    return;
                }
            }
        }
    }

    fn explain(&self, got: &[u8]) -> Mismatch {
        let expected: Vec<u8> = self.expected.iter().copied().take(SHOWN).collect();
        let telling = &got[..got.len().min(8)];
        let lost = (telling.len() == 8).then(|| {
            let expected: Vec<u8> = self.expected.iter().copied().collect();
            memchr::memmem::find(&expected, telling)
        });
        let got = got[..got.len().min(SHOWN)].to_vec();
        Mismatch { at: self.received, expected, got, lost: lost.flatten() }
    }
}

/// The protocol: it notes what comes.
#[derive(Debug, Default)]
pub(super) struct Probe {
    lines: Vec<Line>,
    /// Steps that were made, to see whether anything moves.
    moves: u64,
}

impl Protocol<Socket> for Probe {
    type State = usize;

    const FULL_DUPLEX: bool = true;

    fn opened(&mut self, transport: &mut Transport<'_, Socket>, line: &mut usize) {
        self.moves += 1;
        self.lines[*line].opened = true;
        if self.lines[*line].paused.is_some() {
            transport.pause_reading();
        }
    }

    fn received(&mut self, _: &mut Transport<'_, Socket>, line: &mut usize, bytes: &[u8]) {
        self.moves += 1;
        converse(*line, '<', bytes);
        self.lines[*line].take(bytes);
    }

    fn eof(&mut self, _: &mut Transport<'_, Socket>, line: &mut usize) {
        debug!("#{line} < end");
        self.moves += 1;
        self.lines[*line].ended = true;
    }

    fn closed(&mut self, _: Token, line: usize, reason: &CloseReason) {
        debug!("#{line} closed: {reason}");
        self.moves += 1;
        self.lines[line].token = None;
        self.lines[line].closed = Some(reason.to_string());
    }
}

/// Tells what was said, in numbers and in text.
fn converse(line: usize, direction: char, bytes: &[u8]) {
    if log::log_enabled!(log::Level::Debug) {
        let shown = &bytes[..bytes.len().min(SHOWN)];
        let more = if shown.len() < bytes.len() { " ..." } else { "" };
        let numbers: Vec<_> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
        debug!(
            "#{line} {direction} {}: {}{more} |{}|{more}",
            counted(bytes.len(), "byte"),
            numbers.join(" "),
            shown.escape_ascii()
        );
    }
}

/// What has come over UDP.
#[derive(Debug, Default)]
pub(super) struct Catcher {
    pub caught: Vec<(Token, Envelope, Vec<u8>)>,
    /// The last error that a receive told of, such as that nobody listens.
    pub error: Option<String>,
}

impl DatagramProtocol<UdpPort> for Catcher {
    fn received(&mut self, outlet: &mut Outlet<'_, UdpPort>, envelope: &Envelope, bytes: &[u8]) {
        converse(outlet.token().0 - DATAGRAMS, '<', bytes);
        self.caught.push((outlet.token(), *envelope, bytes.to_vec()));
    }

    fn failed(&mut self, _: &mut Outlet<'_, UdpPort>, error: io::Error) {
        self.error = Some(error.to_string());
    }
}

/// The poll, our connections, and what is known of the service so far.
pub(super) struct Lab {
    pub poller: Poller,
    signals: StopSignals,
    pub reactor: Reactor<Socket, Probe>,
    pub datagrams: Datagrams<UdpPort, Catcher>,
    pub endpoint: Endpoint,
    /// A connection that was opened to choose between addresses, for whoever needs one next.
    spare: Option<usize>,
    /// Connections and bytes that are used at most, as was said before.
    limits: Limits,
    pub patience: Duration,
    pub deadline: Instant,
    /// How many connections at once.
    pub many: usize,
    pub terminator: Option<String>,
    pub pid: Option<i32>,
    /// Bytes that the service says first on each connection.
    pub greeting: usize,
    /// How long a connection, a message and its echo took last.
    pub round_trip: Duration,
    /// The service answers line by line, so what is sent ends in a newline.
    pub by_line: bool,
    /// An echo has come, so that one may be expected.
    pub is_echo: bool,
    /// Nothing comes back at all, so that nothing else can be judged.
    pub silent: bool,
    seed: u64,
    /// The sockets of this experiment.
    ports: Vec<Token>,
    /// What was sent over them.
    pub posted: Vec<Vec<u8>>,
    /// How long those that are closed may take for it.
    pub farewell: Duration,
}

/// The poll, and the signals on it: from here on a signal ends the process, until there is a lab that looks at them.
///
/// # Errors
///
/// If the system has none of what they need.
pub(super) fn take_signals() -> anyhow::Result<(Poller, StopSignals)> {
    let poller = Poller::new(Duration::ZERO).context("cannot make a poll")?;
    let signals = StopSignals::new(poller.registry())?;
    Ok((poller, signals))
}

impl Lab {
    pub fn new(
        (poller, signals): (Poller, StopSignals),
        endpoint: Endpoint,
        patience: Duration,
        deadline: Instant,
        limits: Limits,
    ) -> Self {
        signals.watch(true);
        Lab {
            reactor: Reactor::new(Probe::default(), Settings::default()),
            datagrams: Datagrams::new(Catcher::default(), DATAGRAMS),
            poller,
            signals,
            endpoint,
            spare: None,
            limits,
            patience,
            deadline,
            many: 100,
            terminator: None,
            pid: None,
            greeting: 0,
            round_trip: Duration::ZERO,
            by_line: false,
            is_echo: false,
            silent: false,
            seed: 1,
            ports: Vec::new(),
            posted: Vec::new(),
            farewell: FAREWELL,
        }
    }

    /// Runs something that may wait for others for as long as they like. A signal ends the process meanwhile.
    pub fn outside<T>(&self, act: impl FnOnce() -> T) -> T {
        self.signals.watch(false);
        let outcome = act();
        self.signals.watch(true);
        outcome
    }

    /// Has a process group killed if a signal ends this process.
    pub fn take_along(&self, group: Option<i32>) {
        self.signals.take_along(group);
    }

    /// Of these addresses takes the first that can be connected to, or that answers a datagram. The connection is kept for the
    /// first experiment, since a service may accept only one. Returns why there is none, if there is none.
    pub fn choose(&mut self, endpoints: &[Endpoint]) -> Result<Result<(), String>, Stop> {
        let mut failures = Vec::new();
        for endpoint in endpoints {
            self.endpoint = endpoint.clone();
            if matches!(endpoint, Endpoint::Udp(_)) {
                // Of one that does not answer there is something to judge.
                if endpoints.len() == 1 || self.is_answered()? {
                    return Ok(Ok(()));
                }
                continue;
            }
            match self.try_twice(Lab::connect) {
                Ok(number) => {
                    self.spare = Some(number);
                    return Ok(Ok(()));
                }
                Err(Trouble::Stop(stop)) => return Err(stop),
                Err(Trouble::Broken(Finding { got: cause, .. }) | Trouble::Unjudged(cause) | Trouble::Note(cause)) => {
                    let several = endpoints.len() > 1;
                    failures.push(if several { format!("{endpoint}: {cause}") } else { cause });
                }
            }
        }
        self.endpoint = endpoints[0].clone();
        Ok(if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) })
    }

    /// What comes of an attempt, or of a second one with twice the patience.
    fn try_twice<T>(&mut self, attempt: impl Fn(&mut Lab) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let first = attempt(self);
        let Err(Trouble::Broken(Finding { timing: true, .. })) = first else { return first };
        self.clear()?;
        self.patience *= 2;
        let second = attempt(self);
        self.patience /= 2;
        second
    }

    fn is_answered(&mut self) -> Result<bool, Stop> {
        let Ok(port) = self.port(0) else { return Ok(false) };
        let wait = self.patience / 4;
        for _ in 0..2 {
            self.post(port, b"who answers?");
            if !self.catch(1, wait)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a series of steps that began then has taken long enough: over a slow path a shorter one must do.
    pub fn is_long(&self, began: Instant) -> bool {
        began.elapsed() > 2 * self.patience
    }

    /// Runs the loop until `done`, or until `within` has passed. Returns whether it is done.
    pub fn run(&mut self, within: Duration, mut done: impl FnMut(&mut Lab) -> bool) -> Result<bool, Stop> {
        let until = Instant::now() + within;
        loop {
            if done(self) {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= self.deadline {
                return Err(Stop::Time);
            }
            if now >= until {
                return Ok(false);
            }
            let left = until.min(self.deadline) - now;
            // A millisecond more, for a poll counts in these and must not come back too early again and again.
            let left = left + Duration::from_millis(1);
            let sleep = shortest([self.reactor.sleep(now), self.datagrams.sleep(now), Some(left)]);
            let (now, ready) = self.poller.wait(sleep).map_err(|_| Stop::Time)?;
            let mut signalled = false;
            for readiness in ready {
                match readiness.token {
                    signals::TOKEN => signalled = true,
                    Token(token) if token >= DATAGRAMS => self.datagrams.note(readiness),
                    _ => self.reactor.note(readiness),
                }
            }
            self.reactor.turn(now);
            self.datagrams.turn(now);
            if signalled && let Some(Request::Stop(signal) | Request::Kill(signal)) = self.signals.take() {
                return Err(Stop::Signal(signal));
            }
        }
    }

    /// Runs the loop until `done`, or until nothing has moved for as long as patience lasts.
    pub fn run_while_moving(&mut self, mut done: impl FnMut(&mut Lab) -> bool) -> Result<bool, Stop> {
        let patience = self.patience;
        loop {
            let moves = self.reactor.protocol().moves;
            let mut is_done = false;
            self.run(patience, |lab| {
                is_done = done(lab);
                is_done || lab.reactor.protocol().moves != moves
            })?;
            if is_done || self.reactor.protocol().moves == moves {
                return Ok(is_done);
            }
        }
    }

    /// Lets time pass.
    pub fn rest(&mut self, time: Duration) -> Result<(), Stop> {
        self.run(time, |_| false).map(|_| ())
    }

    /// Begins to open a connection, which is not read at first if `paused`.
    pub fn dial(&mut self, paused: bool) -> Result<usize, Trouble> {
        if self.reactor.counters().opened >= self.limits.connections {
            return Err(Trouble::unjudged("the announced number of connections has been used up"));
        }
        let number = self.reactor.protocol().lines.len();
        let line = Line { paused: paused.then(Instant::now), greeting: self.greeting, ..Line::default() };
        self.reactor.protocol_mut().lines.push(line);
        let until = Instant::now() + self.patience;
        loop {
            match self.try_dial(number, paused) {
                // There is no room in the backlog of a Unix socket, and nobody but us would try again (unix(7)).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    self.rest(Duration::from_millis(2))?;
                }
                outcome => return self.dialled(number, outcome),
            }
        }
    }

    fn try_dial(&mut self, number: usize, paused: bool) -> io::Result<Token> {
        let (endpoint, poller) = (&self.endpoint, &self.poller);
        self.reactor.connect(|token, _| {
            let mut socket = match endpoint {
                Endpoint::Tcp(address) | Endpoint::Udp(address) => Socket::connect_tcp(*address, None)?,
                Endpoint::Unix(path) => Socket::connect_unix(path)?,
            };
            if paused {
                set_small_buffers(&socket)?;
            }
            poller.registry().register(&mut socket, token, Poller::interest())?;
            Ok((socket, number))
        })
    }

    fn dialled(&mut self, number: usize, outcome: io::Result<Token>) -> Result<usize, Trouble> {
        match outcome {
            Ok(token) => {
                self.line_mut(number).token = Some(token);
                Ok(number)
            }
            Err(error) if is_ours(&error) => {
                Err(Trouble::Unjudged(format!("this machine cannot open another connection: {error}")))
            }
            Err(error) => Err(Finding::new(CONNECT, &error.to_string()).timing().into()),
        }
    }

    /// Opens a connection, and waits until it is open.
    pub fn connect(&mut self) -> Result<usize, Trouble> {
        if let Some(number) = self.spare.take().filter(|number| self.line(*number).closed.is_none()) {
            return Ok(number);
        }
        let number = self.dial(false)?;
        self.await_open(number)?;
        Ok(number)
    }

    /// Waits until a connection is open.
    pub fn await_open(&mut self, number: usize) -> Outcome {
        let patience = self.patience;
        let open = self.run(patience, |lab| lab.line(number).opened || lab.line(number).closed.is_some())?;
        if let Some(reason) = &self.line(number).closed {
            return Err(Finding::new(CONNECT, &reason.clone()).timing().into());
        }
        if !open {
            let got = format!("not connected within {patience:?}");
            return Err(Finding::new(CONNECT, &got).timing().into());
        }
        Ok(())
    }

    pub fn line(&self, number: usize) -> &Line {
        &self.reactor.protocol().lines[number]
    }

    fn line_mut(&mut self, number: usize) -> &mut Line {
        &mut self.reactor.protocol_mut().lines[number]
    }

    fn with(&mut self, number: usize, act: impl FnOnce(&mut Transport<'_, Socket>)) -> bool {
        let Some(token) = self.line(number).token else { return false };
        self.reactor.with(token, |_, transport, _| act(transport))
    }

    /// Sends bytes, which are expected back.
    pub fn send(&mut self, number: usize, bytes: &[u8]) {
        converse(number, '>', bytes);
        let line = self.line_mut(number);
        line.expected.extend(bytes);
        line.sent += bytes.len() as u64;
        self.with(number, |transport| transport.write(bytes));
    }

    /// How many bytes have not come back yet.
    pub fn outstanding(&self, number: usize) -> usize {
        self.line(number).expected.len()
    }

    /// How many bytes the kernel has not taken yet.
    pub fn waiting(&mut self, number: usize) -> usize {
        let mut waiting = 0;
        self.with(number, |transport| waiting = transport.waiting());
        waiting
    }

    /// Sends until the service and the kernels between take no more, or `most` bytes were taken. Returns how many were.
    pub fn flood(&mut self, number: usize, most: usize) -> Result<usize, Trouble> {
        const PIECE: usize = 64 * 1024;
        let mut sent = 0;
        while sent < most && self.may_send() {
            let piece = self.message(PIECE);
            self.send(number, &piece);
            sent += piece.len();
            let stuck = self.patience.min(Duration::from_millis(400));
            if self.waiting(number) > 0 && !self.run(stuck, |lab| lab.waiting(number) == 0)? {
                break;
            }
            if let Some(reason) = &self.line(number).closed {
                let got = format!("the connection was closed: {reason}");
                return Err(Finding::new(&format!("{}, without reading the echo", counted(sent, "byte")), &got).into());
            }
        }
        Ok(sent - self.waiting(number))
    }

    /// Whether fewer bytes were sent than was said before.
    pub fn may_send(&self) -> bool {
        self.reactor.counters().sent_bytes < self.limits.bytes
    }

    /// Begins to read, of a connection that was not read, and waits for what comes first. If a segment of the service found no
    /// room here, its kernel sends it again when it has waited about as long as it had waited before (RFC 6298, 5.5),
    /// however short our patience is.
    pub fn resume(&mut self, number: usize) -> Result<(), Stop> {
        let paused = self.line_mut(number).paused.take().map_or(Duration::ZERO, |since| since.elapsed());
        let before = self.line(number).received;
        self.with(number, |transport| {
            // A buffer that is smaller than a segment (64 KiB on loopback) would make the sender wait for its timer before
            // each of them (RFC 9293, 3.8.6.2). Where it cannot be had, that is only slow.
            let _ = sock_ref(transport.socket()).set_recv_buffer_size(READ_BUFFER);
            transport.resume_reading();
        });
        let within = self.patience.max(2 * paused);
        let moved =
            |lab: &mut Lab| lab.line(number).received >= before + SMALL_BUFFER as u64 * 4 || lab.has_echo(number);
        self.run(within, moved).map(|_| ())
    }

    /// Closes our side alone.
    pub fn half_close(&mut self, number: usize) {
        debug!("#{number} > end");
        self.with(number, |transport| transport.shutdown_write());
    }

    /// Closes a connection.
    pub fn close(&mut self, number: usize) {
        self.with(number, |transport| transport.close());
    }

    /// Resets a connection.
    pub fn reset(&mut self, number: usize) {
        debug!("#{number} > reset");
        if let Some(token) = self.line(number).token {
            self.reactor.abort(token);
        }
    }

    /// Closes a connection at once, as a program does that ends: nothing that comes is read any more (close(2)).
    pub fn vanish(&mut self, number: usize) {
        debug!("#{number} > closed at once");
        if let Some(token) = self.line(number).token {
            self.reactor.forget(token);
        }
    }

    /// Bytes that no other message has: letters and digits alone, which nobody translates.
    pub fn message(&mut self, length: usize) -> Vec<u8> {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        self.seed += 1;
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let mut bytes: Vec<u8> = (0..length).map(|_| ALPHABET[rng.usize(..64)]).collect();
        if self.by_line
            && let Some(last) = bytes.last_mut()
        {
            *last = b'\n';
        }
        bytes
    }

    /// Whether all that was sent has come back, or something else, so that there is nothing to wait for.
    pub fn has_echo(&self, number: usize) -> bool {
        let line = self.line(number);
        let (wrong, over) = (line.mismatch.is_some() || !line.extra.is_empty(), line.ended || line.closed.is_some());
        line.expected.is_empty() || wrong || over
    }

    /// Waits until all that was sent has come back, and nothing else.
    pub fn await_echo(&mut self, number: usize) -> Outcome {
        self.run_while_moving(|lab| lab.has_echo(number))?;
        self.verify(number)?;
        self.is_echo = true;
        Ok(())
    }

    /// Whether what has come so far is all that was sent, and nothing else.
    pub fn verify(&self, number: usize) -> Outcome {
        let line = self.line(number);
        let sent = counted(line.sent, "byte").to_string();
        if let Some(mismatch) = &line.mismatch {
            let mut got = format!(
                "at byte {}: '{}' instead of '{}'",
                mismatch.at,
                mismatch.got.escape_ascii(),
                mismatch.expected.escape_ascii()
            );
            if let Some(lost) = mismatch.lost.filter(|lost| *lost > 0) {
                got.push_str(&format!(": {} missing", counted(lost, "byte")));
            }
            return Err(Finding::new(&sent, &got).into());
        }
        if !line.extra.is_empty() {
            let echo = if line.sent == 0 { "" } else { "the echo, followed by " };
            let got = format!("{echo}'{}', which was not sent", line.extra.escape_ascii());
            return Err(Finding::new(&sent, &got).into());
        }
        if line.expected.is_empty() {
            return Ok(());
        }
        let back = format!("{} came back", counted(line.received, "byte"));
        let finding = match (&line.closed, line.ended) {
            (Some(reason), _) if reason != "finished" => {
                Finding::new(&sent, &format!("{back}, then the connection failed: {reason}"))
            }
            (None, false) => Finding::new(&sent, &format!("{back}, then nothing for {:?}", self.patience)).timing(),
            _ => Finding::new(&sent, &format!("{back}, then end of file")),
        };
        Err(finding.into())
    }

    /// Sends a message and waits for its echo.
    pub fn ping(&mut self, number: usize, length: usize) -> Outcome {
        let message = self.message(length);
        self.send(number, &message);
        self.await_echo(number)
    }

    /// A new connection is served.
    pub fn serves(&mut self) -> Outcome {
        let number = self.connect()?;
        self.ping(number, 16)?;
        self.close(number);
        Ok(())
    }

    /// Waits for the service's end of a connection.
    pub fn await_end(&mut self, number: usize, sent: &str) -> Outcome {
        let patience = self.patience;
        self.run(patience, |lab| lab.line(number).ended || lab.line(number).closed.is_some())?;
        let line = self.line(number);
        match &line.closed {
            _ if line.ended => Ok(()),
            Some(reason) if reason == "finished" => Ok(()),
            Some(reason) => Err(Finding::new(sent, &format!("no end of file; the connection failed: {reason}")).into()),
            None => Err(Finding::new(sent, &format!("no end of file within {patience:?}")).timing().into()),
        }
    }

    /// Ends all connections, in good order as far as that takes no time, and forgets them.
    pub fn clear(&mut self) -> Result<(), Stop> {
        for number in 0..self.reactor.protocol().lines.len() {
            self.close(number);
        }
        let farewell = self.farewell;
        let outcome = self.run(farewell, |lab| lab.reactor.is_empty()).map(|in_time| {
            if !in_time {
                // It may be a service that never ends a connection.
                self.farewell = (farewell / 2).max(MIN_FAREWELL);
            }
        });
        self.reactor.abort_all();
        self.spare = None;
        self.reactor.protocol_mut().lines.clear();
        std::mem::take(&mut self.ports).into_iter().for_each(|token| self.datagrams.remove(token));
        self.datagrams.protocol_mut().caught.clear();
        self.posted.clear();
        outcome
    }

    /// A UDP socket of ours, bound to this port or to any.
    pub fn port(&mut self, port: u16) -> Result<Token, Trouble> {
        let Endpoint::Udp(target) = self.endpoint else { return Err(Trouble::unjudged("not a datagram service")) };
        let any = if target.is_ipv4() { [0; 4].into() } else { std::net::IpAddr::from([0; 16]) };
        let (local, registry) = (std::net::SocketAddr::new(any, port), self.poller.registry());
        let added = self
            .datagrams
            .add(|token| UdpPort::bind(local, &crate::reactor::SocketOptions::default(), registry, token));
        let token = added.map_err(|error| Trouble::unjudged(&format!("cannot bind UDP port {port} here: {error}")))?;
        self.ports.push(token);
        Ok(token)
    }

    /// Sends a datagram. Returns whether the kernel took it.
    pub fn post(&mut self, token: Token, bytes: &[u8]) -> bool {
        let Endpoint::Udp(target) = self.endpoint else { return false };
        converse(token.0 - DATAGRAMS, '>', bytes);
        self.posted.push(bytes.to_vec());
        let sent = self.datagrams.with(token, |_, outlet| outlet.send(bytes, &Envelope::from(target)));
        matches!(sent, Some(Sent::Taken))
    }

    /// Waits until so many datagrams have come, and returns those that have.
    pub fn catch(&mut self, count: usize, within: Duration) -> Result<Vec<(Token, Envelope, Vec<u8>)>, Stop> {
        self.run(within, |lab| lab.datagrams.protocol().caught.len() >= count)?;
        Ok(std::mem::take(&mut self.datagrams.protocol_mut().caught))
    }
}

/// Whether a connection could not be made for want of something on this side (connect(2), socket(2), bind(2)).
fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours =
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::PERM, Errno::ACCESS];
    ours.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn set_small_buffers(socket: &Socket) -> io::Result<()> {
    let socket = sock_ref(socket);
    socket.set_recv_buffer_size(SMALL_BUFFER)?;
    socket.set_send_buffer_size(4 * SMALL_BUFFER)
}

fn sock_ref(socket: &Socket) -> socket2::SockRef<'_> {
    match socket {
        Socket::Tcp(stream) => stream.into(),
        Socket::Unix(stream) => stream.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sent: &[u8]) -> Line {
        Line { expected: sent.iter().copied().collect(), ..Line::default() }
    }

    #[test]
    fn every_byte_is_compared_with_what_was_sent() {
        let mut same = line(b"hello");
        same.take(b"he");
        same.take(b"llo");
        assert!(same.mismatch.is_none() && same.extra.is_empty() && same.expected.is_empty());
        same.take(b"!");
        assert_eq!(same.extra, b"!");
        let mut changed = line(b"hello");
        changed.take(b"heLlo");
        let mismatch = changed.mismatch.unwrap();
        assert_eq!((mismatch.at, &mismatch.got[..]), (2, &b"Llo"[..]));
    }

    #[test]
    fn missing_bytes_are_counted() {
        let sent: Vec<u8> = (0..200).collect();
        let mut lossy = line(&sent);
        lossy.take(&sent[..50]);
        lossy.take(&sent[80..]);
        let mismatch = lossy.mismatch.unwrap();
        assert_eq!((mismatch.at, mismatch.lost), (50, Some(30)));
    }

    #[test]
    fn a_known_greeting_is_no_echo() {
        let mut greeted = line(b"hello");
        greeted.greeting = 4;
        greeted.take(b"hi");
        greeted.take(b"!\nhello");
        assert!(greeted.mismatch.is_none() && greeted.expected.is_empty());
    }
}
