//! The line client over UDP: each line is a datagram, and what comes back is printed as it arrives.
//!
//! Datagrams may be lost, and nobody tells. So only a few are on their way at a time, and those that have not come back
//! when nothing has come for a while are given up, and counted.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::HumanCount;
use mio::net::UdpSocket;
use mio::{Token, Waker};

use super::{Config, Input, PROMPT, Printing, is_interactive, take_input, without_newline};
use crate::reactor::Poller;

const SOCKET: Token = Token(0);

/// Datagrams that may be on their way.
const WINDOW: u64 = 16;

/// How long nothing may come until those that are on their way are given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest datagram (RFC 768).
const LONGEST: usize = 65_535;

/// Runs until everything has been sent and has come back, or is lost.
///
/// # Errors
///
/// If nobody listens, a line is too long, datagrams were lost, or standard input or output fail.
pub(super) fn run(config: &Config, address: SocketAddr) -> anyhow::Result<()> {
    let mut client = Client::start(config, address)?;
    while !client.is_done() {
        // Sending comes last: what came back, or was given up, makes room in the window.
        client.receive()?;
        client.give_up();
        client.send_lines()?;
        client.prompt();
        client.out.flush()?;
        if !client.is_done() {
            // Whatever wakes it, everything is tried again: events are hints.
            let _ = client.poller.wait(client.patience())?;
        }
    }
    if client.prompted {
        client.out.print(b"\n"); // what comes next is the shell's prompt
        client.out.flush()?;
    }
    if client.lost > 0 {
        bail!("{} datagrams did not come back", HumanCount(client.lost));
    }
    Ok(())
}

struct Client<'a> {
    config: &'a Config,
    poller: Poller,
    socket: UdpSocket,
    input: Receiver<Input>,
    /// See the client over streams: the thread at standard input holds the other one.
    _waker: Arc<Waker>,
    out: Printing,
    buffer: Box<[u8]>,
    /// A line that the socket has not taken yet.
    line: Option<Vec<u8>>,
    /// No line will follow.
    ended: bool,
    interactive: bool,
    prompted: bool,
    /// Datagrams that are on their way, and those that were given up.
    away: u64,
    lost: u64,
    /// When the last datagram went or came.
    moved: Instant,
}

impl<'a> Client<'a> {
    fn start(config: &'a Config, address: SocketAddr) -> anyhow::Result<Self> {
        let poller = Poller::new(Duration::ZERO)?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut socket = UdpSocket::bind(any.parse()?)?;
        socket.connect(address).with_context(|| format!("cannot send to {}", config.address))?;
        poller.registry().register(&mut socket, SOCKET, Poller::interest())?;
        let (input, waker) = take_input(true, poller.registry())?;
        Ok(Client {
            config,
            poller,
            socket,
            input,
            _waker: waker,
            out: Printing::default(),
            buffer: vec![0; LONGEST].into_boxed_slice(),
            line: None,
            ended: false,
            interactive: is_interactive(),
            prompted: false,
            away: 0,
            lost: 0,
            moved: Instant::now(),
        })
    }

    fn is_done(&self) -> bool {
        self.ended && self.line.is_none() && self.away == 0
    }

    /// Sends lines, as far as there are some and the window allows.
    fn send_lines(&mut self) -> anyhow::Result<()> {
        while self.away < WINDOW {
            if self.line.is_none() && !self.ended {
                self.line = self.next_line()?;
            }
            let Some(line) = &self.line else { return Ok(()) };
            match self.socket.send(line) {
                Ok(_) => {
                    (self.line, self.prompted) = (None, false);
                    self.away += 1;
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("cannot send to {}", self.config.address)),
            }
        }
        Ok(())
    }

    fn next_line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        match self.input.try_recv() {
            Ok(Input::Piece { bytes, line_ends }) => {
                ensure!(line_ends, "a line is longer than a datagram can be");
                let bare = without_newline(&bytes);
                self.ended = self.config.terminator.as_deref() == Some(bare);
                Ok(Some(if self.config.newline { bytes } else { bare.to_vec() }))
            }
            Ok(Input::Failed(error)) => Err(error).context("cannot read standard input"),
            Ok(Input::End) | Err(TryRecvError::Disconnected) => {
                self.ended = true;
                Ok(None)
            }
            Err(TryRecvError::Empty) => Ok(None),
        }
    }

    /// Prints what has come.
    fn receive(&mut self) -> anyhow::Result<()> {
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(length) => {
                    self.out.print(&self.buffer[..length]);
                    if !self.config.newline {
                        self.out.print(b"\n");
                    }
                    self.away = self.away.saturating_sub(1);
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Nobody listens there, and its kernel has said so (udp(7), on errors of earlier datagrams).
                Err(error) => return Err(error).with_context(|| format!("cannot reach {}", self.config.address)),
            }
        }
    }

    /// How long to wait for those that are on their way; `None`: none are.
    fn patience(&self) -> Option<Duration> {
        (self.away > 0).then(|| PATIENCE.saturating_sub(self.moved.elapsed()))
    }

    fn give_up(&mut self) {
        if self.patience() == Some(Duration::ZERO) {
            self.lost += std::mem::take(&mut self.away);
        }
    }

    fn prompt(&mut self) {
        let waits = self.interactive && self.away == 0 && self.line.is_none() && !self.ended;
        if waits && !std::mem::replace(&mut self.prompted, true) {
            self.out.print(PROMPT.as_bytes());
        }
    }
}
