//! What every client has around it: the poll, the signals, and the screen.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Registry, Token, Waker};

use super::Config;
use super::input::Input;
use super::screen::Screen;
use crate::reactor::address::Address;
use crate::reactor::{Poller, Readiness};
use crate::signals::{self, Request, StopSignals};

/// Wakes the poll when a thread of ours has done something.
const WAKE: Token = Token(usize::MAX - 2);

/// How long a signal lets what was received be written.
const FLUSH: Duration = Duration::from_secs(1);

/// A signal asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped(pub i32);

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by signal {}", self.0)
    }
}

impl std::error::Error for Stopped {}

/// The poll, the signals and the screen.
pub(super) struct Console {
    poller: Poller,
    signals: StopSignals,
    /// The threads hold it too. If they dropped it last, closing its descriptor could take a wake-up out of the poll
    /// that has not been seen.
    waker: Arc<Waker>,
    /// What became ready at the last wait.
    pub ready: Vec<Readiness>,
    pub screen: Screen,
    /// Somebody types, and reads what comes back.
    pub interactive: bool,
}

impl Console {
    /// Takes the signals, and standard output.
    pub fn open(config: &Config) -> anyhow::Result<Console> {
        let poller = Poller::new(Duration::ZERO)?;
        let signals = StopSignals::new(poller.registry())?;
        signals.watch(true);
        let waker = Arc::new(Waker::new(poller.registry(), WAKE)?);
        let screen = Screen::start(config, waker.clone())?;
        let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
        Ok(Console { poller, signals, waker, ready: Vec::new(), screen, interactive })
    }

    /// Where sockets are registered.
    pub fn registry(&self) -> &Registry {
        self.poller.registry()
    }

    /// For a thread that wakes the loop.
    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Begins to read standard input.
    pub fn input(&self, config: &Config) -> io::Result<Input> {
        let by_line = self.interactive
            || config.no_newline
            || config.terminator.is_some()
            || matches!(config.address, Address::Udp(_));
        Input::start(by_line, self.waker())
    }

    /// Waits until something becomes ready or `timeout` has passed, and returns the time. What there is to print is
    /// handed to the writer before.
    ///
    /// # Errors
    ///
    /// [`Stopped`] if a signal came; [`super::screen::OutputError`] if standard output failed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> anyhow::Result<Instant> {
        self.screen.turn()?;
        let (now, ready) = self.poller.wait(timeout)?;
        self.ready.clear();
        self.ready.extend(ready.filter(|readiness| ![WAKE, signals::TOKEN].contains(&readiness.token)));
        match self.signals.take() {
            Some(Request::Stop(signal) | Request::Kill(signal)) => return Err(Stopped(signal).into()),
            None => {}
        }
        self.screen.turn()?;
        Ok(now)
    }

    /// Waits until everything has been written.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.screen.finish();
        while !self.screen.is_flushed() {
            self.wait(None)?;
        }
        Ok(())
    }

    /// Waits until everything has been written, or that takes too long, or another signal comes.
    pub fn flush_briefly(&mut self) {
        self.screen.finish();
        let end = Instant::now() + FLUSH;
        let mut now = Instant::now();
        while !self.screen.is_flushed() && now < end {
            match self.wait(Some(end - now)) {
                Ok(time) => now = time,
                Err(_) => return,
            }
        }
    }
}
