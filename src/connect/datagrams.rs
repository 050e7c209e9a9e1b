//! The line client over UDP: each line is a datagram, and what comes back is printed as it arrives.
//!
//! Datagrams may be lost, and nobody tells. So only a few are on their way at a time, and those that have not come back
//! when nothing has come for a while are given up, and counted.

use std::net::SocketAddr;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::HumanCount;
use mio::Token;
use mio::net::UdpSocket;

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
    let mut poller = Poller::new(Duration::ZERO)?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let mut socket = UdpSocket::bind(any.parse()?)?;
    socket.connect(address).with_context(|| format!("cannot send to {}", config.address))?;
    poller.registry().register(&mut socket, SOCKET, Poller::interest())?;
    let (input, _waker) = take_input(true, poller.registry())?;
    let interactive = is_interactive();
    let mut out = Printing::default();
    let mut buffer = vec![0; LONGEST];
    // A line waits here until the socket takes it.
    let mut line: Option<Vec<u8>> = None;
    let (mut ended, mut prompted) = (false, false);
    let (mut away, mut lost) = (0, 0);
    let mut moved = Instant::now();
    loop {
        while away < WINDOW && !ended {
            if line.is_none() {
                line = match input.try_recv() {
                    Ok(Input::Piece { bytes, line_ends }) => {
                        ensure!(line_ends, "a line is longer than a datagram can be");
                        let bare = without_newline(&bytes);
                        ended |= config.terminator.as_deref() == Some(bare);
                        Some(if config.newline { bytes } else { bare.to_vec() })
                    }
                    Ok(Input::Failed(error)) => return Err(error).context("cannot read standard input"),
                    Ok(Input::End) | Err(TryRecvError::Disconnected) => {
                        ended = true;
                        None
                    }
                    Err(TryRecvError::Empty) => None,
                };
            }
            let Some(bytes) = &line else { break };
            match socket.send(bytes) {
                Ok(_) => {
                    (line, prompted) = (None, false);
                    away += 1;
                    moved = Instant::now();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("cannot send to {}", config.address)),
            }
        }
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    out.print(&buffer[..length]);
                    if !config.newline {
                        out.print(b"\n");
                    }
                    away = away.saturating_sub(1);
                    moved = Instant::now();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // Whoever is at the other end does not listen, and said so (icmp(7)).
                Err(error) => return Err(error).with_context(|| format!("cannot reach {}", config.address)),
            }
        }
        if away > 0 && moved.elapsed() >= PATIENCE {
            lost += std::mem::take(&mut away);
        }
        if ended && away == 0 && line.is_none() {
            break;
        }
        if interactive && away == 0 && !ended && !std::mem::replace(&mut prompted, true) {
            out.print(PROMPT.as_bytes());
        }
        out.flush()?;
        // Whatever wakes it, everything is tried again: events are hints.
        let _ = poller.wait((away > 0).then(|| PATIENCE.saturating_sub(moved.elapsed())))?;
    }
    if prompted {
        out.print(b"\n"); // what comes next is the shell's prompt
    }
    out.flush()?;
    if lost > 0 {
        bail!("{} datagrams did not come back", HumanCount(lost));
    }
    Ok(())
}
