//! The poll: where the loop sleeps, and the only place that asks the kernel what became ready.
//!
//! It turns mio's events into [`Readiness`], reads the clock once a turn, and knows nothing of what the tokens mean.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Registry};

use super::Readiness;

/// Events taken from the kernel at once. 16 measure slower; 64 to 1024 measure alike.
const EVENTS: usize = 1024;

/// A [`mio::Poll`] with its events, and the spinning before it sleeps.
#[derive(Debug)]
pub struct Poller {
    poll: Poll,
    events: Events,
    busy_poll: Duration,
}

impl Poller {
    /// A poll that spins for `busy_poll` before it sleeps: that keeps the core hot and saves the wake-up, at the
    /// price of a busy core.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left (epoll_create1(2)).
    pub fn new(busy_poll: Duration) -> io::Result<Self> {
        Ok(Poller { poll: Poll::new()?, events: Events::with_capacity(EVENTS), busy_poll })
    }

    /// Where sources are registered.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// What a connection is registered for, once and for its whole life. mio registers edge-triggered, so interest
    /// in WRITABLE costs nothing while nobody waits for it, and reregistering, a system call each time, is never
    /// needed.
    pub fn interest() -> Interest {
        Interest::READABLE | Interest::WRITABLE
    }

    /// Waits until something becomes ready or `timeout` has passed (`None`: for ever), and returns the time and
    /// what became ready. A signal may end the wait early, with nothing ready.
    ///
    /// # Errors
    ///
    /// What the kernel reports, EINTR excepted (epoll_wait(2)).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<(Instant, impl Iterator<Item = Readiness> + '_)> {
        if !self.spin(timeout)? {
            self.poll(timeout)?;
        }
        let ready = self.events.iter().map(|event| Readiness {
            token: event.token(),
            // An error is neither read nor write readiness for mio, but the next call will report it.
            readable: event.is_readable() || event.is_error(),
            writable: event.is_writable() || event.is_error(),
            read_closed: event.is_read_closed(),
        });
        Ok((Instant::now(), ready))
    }

    /// Polls without sleeping for as long as asked. Returns whether something became ready.
    fn spin(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let limit = timeout.unwrap_or(Duration::MAX).min(self.busy_poll);
        if limit.is_zero() {
            return Ok(false);
        }
        let began = Instant::now();
        loop {
            self.poll(Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                return Ok(true);
            }
            if began.elapsed() >= limit {
                return Ok(false);
            }
        }
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}
