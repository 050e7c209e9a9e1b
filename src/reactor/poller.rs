//! The poll: where the loop sleeps, and the only place that asks the kernel what became ready.
//!
//! It turns mio's events into [`Readiness`], reads the clock once a turn, and knows nothing of what the tokens mean.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Registry};
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{PollFd, PollFlags, Timespec};

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
    /// See [`Poller::wait_exactly`].
    exact: bool,
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
        Ok(Poller { poll: Poll::new()?, events: Events::with_capacity(EVENTS), spinning, exact: false })
    }

    /// Ends waits when their timeout has passed, and not up to a millisecond later, at the price of a second system call
    /// per wait: epoll_wait(2) counts in milliseconds, to which mio rounds up. Other systems' polls are exact in any case
    /// (kevent(2) takes nanoseconds).
    pub fn wait_exactly(&mut self) {
        self.exact = true;
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
            let left = if self.exact { self.sleep(timeout)? } else { timeout };
            self.poll(left)?;
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

    /// Sleeps until something is ready or `timeout` has passed, to the nanosecond as far as the kernel keeps it (ppoll(2)
    /// on the poll's own descriptor, which is readable while events are there to be taken, epoll(7)). Returns how long
    /// the poll may still sleep.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn sleep(&self, timeout: Option<Duration>) -> io::Result<Option<Duration>> {
        // What is too long for a Timespec need not be exact.
        let Some(exact) = timeout.filter(|it| !it.is_zero()).and_then(|it| Timespec::try_from(it).ok()) else {
            return Ok(timeout);
        };
        match rustix::event::poll(&mut [PollFd::new(self.registry(), PollFlags::IN)], Some(&exact)) {
            Err(error) if error != rustix::io::Errno::INTR => Err(error.into()),
            _ => Ok(Some(Duration::ZERO)),
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn sleep(&self, timeout: Option<Duration>) -> io::Result<Option<Duration>> {
        Ok(timeout)
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
    fn exact_waits_are_never_short_and_see_events() {
        let mut poller = Poller::new(Duration::ZERO).unwrap();
        poller.wait_exactly();
        for wait in [1, 150, 1_500].map(Duration::from_micros) {
            let began = Instant::now();
            assert_eq!(poller.wait(Some(wait)).unwrap().1.count(), 0);
            assert!(began.elapsed() >= wait, "{wait:?}");
        }
        let token = mio::Token(7);
        let waker = mio::Waker::new(poller.registry(), token).unwrap();
        waker.wake().unwrap();
        for wait in [Duration::ZERO, Duration::from_secs(600), Duration::MAX] {
            waker.wake().unwrap();
            let (_, mut events) = poller.wait(Some(wait)).unwrap();
            assert_eq!(events.next().map(|readiness| readiness.token), Some(token), "{wait:?}");
        }
    }

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
