//! The poll: where the loop sleeps, and the only place that asks the kernel what became ready.
//!
//! It turns mio's events into [`Readiness`], reads the clock once a turn, and knows nothing of what the tokens mean.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Registry};

use super::source::Readiness;

/// Events taken from the kernel at once. 16 measure slower; 64 to 1024 measure alike.
const EVENTS: usize = 1024;

/// Waits in a row that were longer than the spinning before it is given up.
const MISSES: u32 = 8;

/// A [`mio::Poll`] with its events, and the spinning before it sleeps.
#[derive(Debug)]
pub struct Poller {
    poll: Poll,
    events: Events,
    spinning: Spinning,
}

/// Whether spinning before a sleep is worth it: while events come so close on each other that it meets them. Where they
/// do not it would only use up the processor, so after some misses it is left alone until a wait has been short again.
#[derive(Debug)]
struct Spinning {
    limit: Duration,
    misses: u32,
}

impl Spinning {
    /// How long to spin before the next sleep.
    fn time(&self) -> Duration {
        if self.misses < MISSES { self.limit } else { Duration::ZERO }
    }

    /// Takes in how long a wait was.
    fn learn(&mut self, waited: Duration) {
        self.misses = if waited < self.limit { 0 } else { self.misses.saturating_add(1) };
    }
}

impl Poller {
    /// A poll that spins for `busy_poll` before it sleeps: that keeps the core hot and saves the wake-up, at the
    /// price of a busy core. It does so only while events come as close as that.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left (epoll_create1(2)).
    pub fn new(busy_poll: Duration) -> io::Result<Self> {
        let spinning = Spinning { limit: busy_poll, misses: 0 };
        Ok(Poller { poll: Poll::new()?, events: Events::with_capacity(EVENTS), spinning })
    }

    /// Where sources are registered.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// What a connection is registered for, once and for its whole life. mio registers edge-triggered, so interest in
    /// WRITABLE costs nothing while nothing waits for it, and reregistering, a system call each time, is never needed.
    /// Urgent data is asked for where the poll can tell of it (`EPOLLPRI`).
    pub fn interest() -> Interest {
        let interest = Interest::READABLE | Interest::WRITABLE;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let interest = interest | Interest::PRIORITY;
        interest
    }

    /// Waits until something becomes ready or `timeout` has passed (`None`: without a limit), and returns the time and
    /// what became ready. A signal may end the wait early, with nothing ready.
    ///
    /// # Errors
    ///
    /// What the kernel reports, EINTR excepted (epoll_wait(2)).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<(Instant, impl Iterator<Item = Readiness> + '_)> {
        let began = (!self.spinning.limit.is_zero()).then(Instant::now);
        let spun = began.map_or(Ok(false), |began| self.spin(began, timeout))?;
        if !spun {
            self.poll(timeout)?;
        }
        let now = Instant::now();
        if let Some(began) = began {
            self.spinning.learn(now - began);
        }
        let ready = self.events.iter().map(|event| Readiness {
            token: event.token(),
            // An error is neither read nor write readiness for mio, but the next call will report it.
            readable: event.is_readable() || event.is_error(),
            writable: event.is_writable() || event.is_error(),
            read_closed: event.is_read_closed(),
            urgent: event.is_priority(),
        });
        Ok((now, ready))
    }

    /// Polls without sleeping, for as long as it is worth it. Returns whether something became ready.
    fn spin(&mut self, began: Instant, timeout: Option<Duration>) -> io::Result<bool> {
        let limit = timeout.unwrap_or(Duration::MAX).min(self.spinning.time());
        if limit.is_zero() {
            return Ok(false);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_stops_where_events_are_far_apart() {
        let limit = Duration::from_micros(100);
        let (short, long) = (limit / 2, limit * 50);
        let mut spinning = Spinning { limit, misses: 0 };
        for _ in 0..MISSES {
            assert_eq!(spinning.time(), limit);
            spinning.learn(long);
        }
        assert_eq!(spinning.time(), Duration::ZERO, "it has missed often enough");
        spinning.learn(long);
        assert_eq!(spinning.time(), Duration::ZERO);
        spinning.learn(short);
        assert_eq!(spinning.time(), limit, "it would have met this one");
    }
}
