//! Accepting connections: a budget, a limit, and what to do when descriptors run out.
//!
//! `accept(2)` has three habits that a loop must know. A listener's readiness is an edge: whom a budget or a pause
//! left in the backlog raises no new one, so each listener remembers that it is *owed* an accept until one said
//! WouldBlock (sozu issue 82). Without a free descriptor it fails with EMFILE or ENFILE whether or not anybody waits,
//! so an empty backlog at the limit looks like a full one (libuv commit b3ab332): retrying at once would spin, and
//! so would waiting for readiness that stays. And an error may belong to a peer that is gone already
//! (ECONNABORTED), which is no reason to stop.
//!
//! So accepting *pauses* when there is no room or no descriptor, until a connection closes or a short time has
//! passed, and whoever waits stays in the backlog. This module knows when to accept; it does not know sockets, which
//! it reaches through [`Accept`].

use std::io;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use mio::Token;

use super::access::Refusal;
use super::tokens;
use crate::reactor::socket::Origin;
use crate::reactor::{Protocol, Reactor, Readiness, Stream};

/// Connections accepted from one listener in a turn before the connections get theirs.
const ACCEPT_BUDGET: usize = 64;

/// How long accepting pauses for want of descriptors, if no connection closes before. It doubles from the first to
/// the second while the want lasts.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// Episodes of pausing that begin sooner after the last report are not reported again: a server that is full and
/// whose clients come and go would fill the log.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A listening socket.
pub trait Accept {
    /// The connections it accepts.
    type Stream: Stream;

    /// Accepts one peer and registers it under `token`.
    ///
    /// # Errors
    ///
    /// What the kernel reports (accept(2), epoll_ctl(2)); `WouldBlock` if nobody waits. A peer that was accepted and
    /// could not be registered must not be dropped, but returned by a later call.
    fn accept(&mut self, token: Token) -> io::Result<(Self::Stream, Origin)>;
}

/// A protocol whose connections are accepted, and may be refused.
pub(super) trait Welcome<S: Stream>: Protocol<S> {
    /// What is to be remembered about somebody who has come at `now`, or why it is turned away. It is closed at once
    /// then, and its token is another's.
    fn welcome(&mut self, token: Token, origin: Origin, now: Instant) -> Result<Self::State, Refusal>;

    /// Of those who were welcome, how many have not been let in yet, because they have to say more about themselves, and
    /// how many never were.
    fn undecided_and_rejected(&self) -> (u64, u64) {
        (0, 0)
    }
}

struct Door<A> {
    token: Token,
    listener: A,
    /// Its last accept did not say WouldBlock, so somebody may be waiting whom no edge will announce.
    owed: bool,
}

/// Why nothing is accepted at present.
#[derive(Debug, Clone, Copy)]
enum Pause {
    /// There are as many connections as there may be; only one that closes changes that.
    Full,
    /// The kernel refused. Perhaps it will not after `until`, or when fewer than `connections` are left.
    Refused { until: Instant, connections: usize },
}

/// All listeners of a server, and the rules for when to accept.
pub(super) struct Acceptor<A> {
    doors: Vec<Door<A>>,
    max_connections: usize,
    accept_limit: Option<u64>,
    accepted: u64,
    pause: Option<Pause>,
    backoff: Duration,
    /// Accepting has paused and no backlog was found empty since.
    episode: bool,
    reported: Option<Instant>,
    /// Which listener is served first, so that one busy backlog does not take every place that becomes free.
    first: usize,
    /// Episodes of pausing.
    pub pauses: u64,
}

impl<A: Accept> Acceptor<A> {
    /// Accepts from `listeners`, which are registered under these tokens, at most `max_connections` at once and
    /// `accept_limit` in all.
    pub fn new(listeners: Vec<(Token, A)>, max_connections: usize, accept_limit: Option<u64>) -> Self {
        Acceptor {
            doors: listeners.into_iter().map(|(token, listener)| Door { token, listener, owed: false }).collect(),
            max_connections,
            accept_limit,
            accepted: 0,
            pause: None,
            backoff: PAUSE.0,
            episode: false,
            reported: None,
            first: 0,
            pauses: 0,
        }
    }

    /// Notes a listener's readiness. Returns whether it was a listener's.
    pub fn mark(&mut self, readiness: &Readiness) -> bool {
        if tokens::is_echo(readiness.token) {
            return false; // nearly all are
        }
        match self.doors.iter_mut().find(|door| door.token == readiness.token) {
            Some(door) => {
                door.owed = true;
                true
            }
            None => false,
        }
    }

    /// Accepts whom it owes an accept, within the budget.
    pub fn accept<P: Welcome<A::Stream>>(&mut self, now: Instant, reactor: &mut Reactor<A::Stream, P>) {
        if self.doors.is_empty() || self.ends(reactor.protocol()) || self.is_paused(now, reactor.len()) {
            return;
        }
        self.first = (self.first + 1) % self.doors.len();
        for number in 0..self.doors.len() {
            let number = (self.first + number) % self.doors.len();
            if !self.accept_from(number, now, reactor) {
                return;
            }
        }
    }

    /// Accepts from one listener. Returns whether the others may accept too.
    fn accept_from<P: Welcome<A::Stream>>(
        &mut self,
        number: usize,
        now: Instant,
        reactor: &mut Reactor<A::Stream, P>,
    ) -> bool {
        for _ in 0..ACCEPT_BUDGET {
            if !self.doors[number].owed {
                break;
            }
            if self.limit_reached(reactor.protocol()) {
                return false;
            }
            if reactor.len() >= self.max_connections {
                self.pause(Pause::Full, now, &format!("{} connections are open", reactor.len()));
                return false;
            }
            let door = &mut self.doors[number];
            let mut refused = false;
            let accepted = reactor.open(|token, protocol| {
                let (stream, origin) = door.listener.accept(token)?;
                match protocol.welcome(token, origin, now) {
                    Ok(state) => {
                        debug!("token {}: accepted {origin}", token.0);
                        Ok((stream, state))
                    }
                    Err(refusal) => {
                        debug!("refused {origin}: {refusal}");
                        refused = true;
                        Err(io::ErrorKind::PermissionDenied.into())
                    }
                }
            });
            match accepted {
                Err(_) if refused => {}
                Ok(_) => {
                    self.backoff = PAUSE.0;
                    self.accepted += 1;
                    if self.ends(reactor.protocol()) {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    door.owed = false;
                    if std::mem::take(&mut self.episode) {
                        debug!("accepting goes on: nobody is left waiting");
                    }
                }
                // The peer left before it was accepted, or a signal came: the next one, please.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                // EMFILE, ENFILE, ENOBUFS, ENOMEM; and whatever else accept(2) may say, for a loop must not spin on
                // an error it does not know.
                Err(error) => {
                    let until = now + self.backoff;
                    self.backoff = (self.backoff * 2).min(PAUSE.1);
                    let connections = reactor.len();
                    self.pause(Pause::Refused { until, connections }, now, &error.to_string());
                    return false;
                }
            }
        }
        true
    }

    /// Whether there are as many connections as there may be in all, if those who are undecided are let in.
    fn limit_reached<S: Stream>(&self, protocol: &impl Welcome<S>) -> bool {
        let (_, rejected) = protocol.undecided_and_rejected();
        self.accept_limit.is_some_and(|limit| self.accepted - rejected >= limit)
    }

    /// Ends listening if the last connection has been let in.
    fn ends<S: Stream>(&mut self, protocol: &impl Welcome<S>) -> bool {
        let (undecided, rejected) = protocol.undecided_and_rejected();
        let ends = self.accept_limit.is_some_and(|limit| self.accepted - rejected - undecided >= limit);
        if ends {
            info!("the last connection has been accepted; listening ends");
            self.close();
        }
        ends
    }

    /// Whether accepting still has to wait, and if not, ends the pause.
    fn is_paused(&mut self, now: Instant, connections: usize) -> bool {
        let paused = match self.pause {
            None => false,
            Some(Pause::Full) => connections >= self.max_connections,
            Some(Pause::Refused { until, connections: then }) => now < until && connections >= then,
        };
        if !paused {
            self.pause = None;
        }
        paused
    }

    fn pause(&mut self, pause: Pause, now: Instant, cause: &str) {
        self.pause = Some(pause);
        if std::mem::replace(&mut self.episode, true) {
            return;
        }
        self.pauses += 1;
        if self.reported.is_none_or(|then| now.saturating_duration_since(then) >= REPORT_EVERY) {
            self.reported = Some(now);
            warn!("accepting pauses: {cause}; it goes on when there is room, and who waits stays in the backlog");
        }
    }

    /// How long the poll may sleep as far as accepting goes; `None`: until something becomes ready. A place may have
    /// become free at any point of the turn, after the acceptor had its own too.
    pub fn sleep<P: Welcome<A::Stream>>(&self, now: Instant, reactor: &Reactor<A::Stream, P>) -> Option<Duration> {
        if !self.doors.iter().any(|door| door.owed) || self.limit_reached(reactor.protocol()) {
            return None;
        }
        let connections = reactor.len();
        match self.pause {
            Some(Pause::Full) if connections >= self.max_connections => None,
            Some(Pause::Refused { until, connections: then }) if connections >= then => {
                Some(until.saturating_duration_since(now))
            }
            _ => Some(Duration::ZERO),
        }
    }

    /// Stops listening.
    pub fn close(&mut self) {
        self.doors.clear();
        self.pause = None;
    }

    /// The most connections at once.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Whether listening has ended.
    pub fn is_closed(&self) -> bool {
        self.doors.is_empty()
    }
}
