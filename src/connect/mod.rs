//! The line client: lines from standard input go out, what comes back is printed as it arrives.
//!
//! It is one more protocol on the reactor. Standard input alone cannot be polled (a file is always ready, and a
//! terminal must not be switched to non-blocking under the shell's feet), so a thread reads it and wakes the poll. At
//! most a few pieces are on their way at any time: the next one is taken when the socket has taken the last, so a
//! file of any size passes through constant memory.
//!
//! Over UDP there is no stream, and a line is a datagram: that client is in `datagrams`.

mod datagrams;

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::HumanCount;
use mio::{Registry, Token, Waker};

use crate::reactor::address::{Address, Endpoint};
use crate::reactor::socket::Socket;
use crate::reactor::{CloseReason, Poller, Protocol, Reactor, Settings, Source, Stream, Transport};

const INPUT: Token = Token(usize::MAX - 1);

/// Bytes taken from standard input at once, and so the most that is compared with the terminator.
const PIECE: u64 = 64 * 1024;

const PROMPT: &str = "> ";

/// What the client is to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whom to connect to.
    pub address: Address,
    /// Send lines with their newlines. Without, each line is sent bare, once the echo of the one before is complete.
    pub newline: bool,
    /// Leave after sending this line and receiving its echo.
    pub terminator: Option<Vec<u8>>,
}

/// Connects, and runs until everything has been sent and has come back, or the peer closes.
///
/// # Errors
///
/// If there is no connection to be had, if it ends before everything has come back, or if standard input or output
/// fail. A reader of standard output that has seen enough (a closed pipe) is no error.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let endpoints = config.address.resolve().with_context(|| format!("cannot resolve {}", config.address))?;
    let outcome = match &endpoints[0] {
        Endpoint::Udp(address) => datagrams::run(config, *address),
        _ => dial(&endpoints)
            .with_context(|| format!("cannot connect to {}", config.address))
            .and_then(|socket| Client::start(config, socket)?.run()),
    };
    match outcome {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

/// A connection to the first of the endpoints that accepts one.
fn dial(endpoints: &[Endpoint]) -> io::Result<Socket> {
    let mut outcome = Err(io::ErrorKind::NotFound.into());
    for endpoint in endpoints {
        outcome = match endpoint {
            Endpoint::Tcp(address) | Endpoint::Udp(address) => {
                std::net::TcpStream::connect(address).and_then(|stream| {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    Ok(Socket::Tcp(mio::net::TcpStream::from_std(stream)))
                })
            }
            Endpoint::Unix(path) => Socket::connect_unix_blocking(path),
        };
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OutputError>().is_some_and(|OutputError(error)| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Standard output failed.
#[derive(Debug)]
struct OutputError(io::Error);

impl std::fmt::Display for OutputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

/// What the thread at standard input has found.
enum Input {
    /// The next bytes; `line_ends` if a line ends with them.
    Piece {
        bytes: Vec<u8>,
        line_ends: bool,
    },
    End,
    Failed(io::Error),
}

/// How far the conversation has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Input is sent as it comes.
    Talking,
    /// The terminator has been sent; its echo is the end.
    Leaving,
    /// The input has ended, our side is closed, and the rest is awaited.
    Finishing,
}

struct Client<'a> {
    config: &'a Config,
    poller: Poller,
    reactor: Reactor<Socket, Printing>,
    token: Token,
    input: Receiver<Input>,
    /// The thread at standard input holds the other one, and ends before the last wake-up has been seen. Closing the
    /// descriptor behind it would take that out of the poll.
    _waker: Arc<Waker>,
    interactive: bool,
    prompted: bool,
    sent: u64,
    /// A bare word has been sent, and its newline is to be printed after its echo.
    newline_owed: bool,
    /// The next piece of input is in the middle of a line.
    inside_line: bool,
    phase: Phase,
}

impl<'a> Client<'a> {
    fn start(config: &'a Config, mut socket: Socket) -> anyhow::Result<Self> {
        let poller = Poller::new(Duration::ZERO)?;
        let mut reactor = Reactor::new(Printing::default(), Settings::default());
        let token = reactor.open(|token, _| {
            poller.registry().register(&mut socket, token, Poller::interest())?;
            Ok((socket, ()))
        })?;
        let interactive = is_interactive();
        let by_line = interactive || !config.newline || config.terminator.is_some();
        let (input, waker) = take_input(by_line, poller.registry())?;
        Ok(Client {
            config,
            poller,
            reactor,
            token,
            input,
            _waker: waker,
            interactive,
            prompted: false,
            sent: 0,
            newline_owed: false,
            inside_line: false,
            phase: Phase::Talking,
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            self.after_echo();
            let more = self.take_input()?;
            self.reactor.protocol_mut().flush()?;
            if self.is_done() {
                return self.conclude();
            }
            let sleep = if more { Some(Duration::ZERO) } else { self.reactor.sleep(Instant::now()) };
            let (now, ready) = self.poller.wait(sleep)?;
            self.reactor.turn_with(now, ready.filter(|readiness| readiness.token != INPUT));
        }
    }

    fn is_done(&self) -> bool {
        self.reactor.is_empty() || (self.phase == Phase::Leaving && self.is_echoed())
    }

    /// Whether all that was sent has come back.
    fn is_echoed(&self) -> bool {
        self.reactor.protocol().received >= self.sent
    }

    /// Takes one piece of input, if it is time for it, and sends it. Returns whether there may be more at once.
    fn take_input(&mut self) -> anyhow::Result<bool> {
        let mut waiting = 0;
        self.reactor.with(self.token, |_, transport, _| waiting = transport.waiting());
        let in_turn = self.config.newline || self.inside_line || self.is_echoed();
        if self.phase != Phase::Talking || waiting > 0 || !in_turn || self.reactor.is_empty() {
            return Ok(false);
        }
        match self.input.try_recv() {
            Ok(Input::Piece { bytes, line_ends }) => {
                self.send(&bytes, line_ends);
                Ok(true)
            }
            Ok(Input::Failed(error)) => Err(error).context("cannot read standard input"),
            Ok(Input::End) | Err(TryRecvError::Disconnected) => {
                self.phase = Phase::Finishing;
                if std::mem::take(&mut self.prompted) {
                    self.reactor.protocol_mut().print(b"\n"); // what comes next is the shell's prompt
                }
                self.reactor.with(self.token, |_, transport, _| transport.shutdown_write());
                Ok(false)
            }
            Err(TryRecvError::Empty) => Ok(false),
        }
    }

    fn send(&mut self, piece: &[u8], line_ends: bool) {
        let bare = without_newline(piece);
        let whole_line = line_ends && !std::mem::replace(&mut self.inside_line, !line_ends);
        if whole_line && self.config.terminator.as_deref() == Some(bare) {
            self.phase = Phase::Leaving;
        }
        let bytes = if self.config.newline { piece } else { bare };
        self.newline_owed = !self.config.newline && line_ends;
        self.prompted = false;
        self.sent += bytes.len() as u64;
        self.reactor.with(self.token, |_, transport, _| transport.write(bytes));
    }

    /// What is printed when everything that was sent has come back: the newline that was not sent, and the prompt.
    fn after_echo(&mut self) {
        if !self.is_echoed() {
            return;
        }
        let printing = self.reactor.protocol_mut();
        if std::mem::take(&mut self.newline_owed) {
            printing.print(b"\n");
        }
        if self.interactive && self.phase == Phase::Talking && !self.prompted {
            self.prompted = true;
            printing.print(PROMPT.as_bytes());
        }
    }

    /// Says how it ended.
    fn conclude(&mut self) -> anyhow::Result<()> {
        let printing = self.reactor.protocol();
        let missing = self.sent.saturating_sub(printing.received);
        let unsent = self.phase == Phase::Talking && matches!(self.input.try_recv(), Ok(Input::Piece { .. }));
        if missing > 0 || unsent {
            let cause = match &printing.failure {
                Some(error) => error.to_string(),
                None => format!("{} closed it", self.config.address),
            };
            if missing > 0 {
                bail!("the connection ended with {} bytes not echoed: {cause}", HumanCount(missing));
            }
            bail!("the connection ended with input not sent: {cause}");
        }
        if self.phase == Phase::Talking && self.interactive {
            eprintln!("\n{} closed the connection", self.config.address);
        }
        Ok(())
    }
}

/// Whether somebody types.
fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

fn without_newline(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Has standard input read by a thread, a line at a time or in blocks. The poll wakes when there is some.
fn take_input(by_line: bool, registry: &Registry) -> anyhow::Result<(Receiver<Input>, Arc<Waker>)> {
    let waker = Arc::new(Waker::new(registry, INPUT)?);
    let (sender, input) = sync_channel(1);
    let waking = waker.clone();
    thread::Builder::new().name("input".to_owned()).spawn(move || read_input(by_line, &sender, &waking))?;
    Ok((input, waker))
}

/// Reads standard input, and passes it on.
fn read_input(by_line: bool, sender: &SyncSender<Input>, waker: &Waker) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut bytes = Vec::new();
        let mut piece = stdin.by_ref().take(PIECE);
        let read = if by_line {
            piece.read_until(b'\n', &mut bytes)
        } else {
            // Not `read_to_end`, which would wait for the piece to be full: what a pipe has is sent.
            bytes.resize(PIECE as usize, 0);
            piece.read(&mut bytes).inspect(|&count| bytes.truncate(count))
        };
        let input = match read {
            Ok(0) => Input::End,
            Ok(count) => {
                // Cut short by neither newline nor size, it is the last line, and has no newline.
                let line_ends = bytes.ends_with(b"\n") || (by_line && (count as u64) < PIECE);
                Input::Piece { bytes, line_ends }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Input::Failed(error),
        };
        let last = !matches!(input, Input::Piece { .. });
        // Errors mean that the client is gone.
        if sender.send(input).is_err() || waker.wake().is_err() || last {
            return;
        }
    }
}

/// Prints what is received, and counts it.
#[derive(Default)]
struct Printing {
    received: u64,
    /// What standard output did not take yet. Bounded: it is written out once a turn.
    unwritten: Vec<u8>,
    failure: Option<io::Error>,
}

impl Printing {
    fn print(&mut self, bytes: &[u8]) {
        self.unwritten.extend_from_slice(bytes);
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(&self.unwritten).and_then(|()| out.flush());
        self.unwritten.clear();
        written.map_err(|error| OutputError(error).into())
    }
}

impl<S: Stream> Protocol<S> for Printing {
    type State = ();
    /// The server may refuse to read while it cannot send, so what it sends must be read in any case.
    const FULL_DUPLEX: bool = true;

    fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), bytes: &[u8]) {
        self.received += bytes.len() as u64;
        self.print(bytes);
    }

    fn closed(&mut self, _: Token, _: (), reason: &CloseReason) {
        if let CloseReason::Failed(error) = reason {
            self.failure = Some(io::Error::new(error.kind(), error.to_string()));
        }
    }
}
