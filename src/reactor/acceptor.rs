//! Accepting connections: a budget, a limit, and what to do when descriptors run out.
//!
//! `accept(2)` surprises a loop in three ways. A listener's readiness is an edge: connections that a budget or a pause left
//! in the backlog raise no new one, so each listener stays *ready* until an accept said WouldBlock (sozu issue 82).
//! Without a free descriptor it fails with EMFILE or ENFILE whether or not a connection waits, so an empty backlog at the
//! limit looks like a full one (libuv commit b3ab332): retrying at once would spin, and so would waiting for readiness
//! that stays. And an error may belong to a peer that is gone already (ECONNABORTED), which is no reason to stop.
//!
//! So accepting *pauses* when there is no descriptor, until a connection closes or a short time has passed, and further
//! connections wait in the backlog. That there is no room is not remembered at all: it is looked at, each time.

use std::io;
use std::time::{Duration, Instant};

use super::pause::Pause;
use super::settings::Settings;
use super::socket::Origin;
use super::source::shortest;
use crate::count::{agreeing, counted};
use mio::Token;

/// Connections accepted from one listener in a turn before the connections get theirs.
const ACCEPT_BUDGET: usize = 64;

/// A listening socket on a poll.
pub trait Listen {
    /// The connections it accepts.
    type Stream;

    /// Accepts one peer and registers it under `token`.
    ///
    /// # Errors
    ///
    /// What the kernel reports (accept(2), epoll_ctl(2)); `WouldBlock` if nobody waits. A peer that was accepted and
    /// could not be registered must not be dropped, but returned by a later call.
    fn accept(&mut self, token: Token) -> io::Result<(Self::Stream, Origin)>;

    /// Lets no more connections into the backlog, as far as the system can; those in it can still be accepted. Returns
    /// how many there may be.
    fn close_backlog(&mut self) -> usize;
}

struct Listener<S> {
    socket: Box<dyn Listen<Stream = S>>,
    /// Its last accept did not say WouldBlock, so a connection may be waiting that no edge will announce.
    ready: bool,
    pause: Pause,
    /// The number of connections when the kernel refused: fewer end the pause early.
    connections_then: usize,
    /// How many may still be accepted, once no more are let into the backlog.
    remaining: Option<usize>,
}

impl<S> Listener<S> {
    /// Until when it pauses, if no connection has closed since it began to.
    fn paused_until(&self, connections: usize) -> Option<Instant> {
        self.pause.until().filter(|_| connections >= self.connections_then)
    }
}

/// What one call of accept came to.
pub(super) enum Accepted {
    /// There is one connection more.
    Connection,
    /// The protocol did not let it in.
    Refused,
}

/// All listeners of a reactor, and the rules for when to accept.
pub(super) struct Acceptor<S> {
    /// By number. A closed listener leaves its slot empty, because numbers are tokens.
    listeners: Vec<Option<Listener<S>>>,
    /// How many further connections may be accepted; `None`: any number.
    limit: Option<u64>,
    /// Which listener is served first, so that one busy backlog does not take every slot that becomes free.
    first: usize,
    /// The episode of having no room.
    full: Pause,
}

impl<S> Acceptor<S> {
    pub fn new() -> Self {
        Acceptor { listeners: Vec::new(), limit: None, first: 0, full: Pause::default() }
    }

    /// The number and the token of the next listener.
    pub fn next_token(&self, settings: &Settings) -> Token {
        Token(settings.first_token + Settings::TOKENS / 2 + self.listeners.len())
    }

    pub fn add(&mut self, socket: Box<dyn Listen<Stream = S>>) {
        // A connection may have come before the listener was in the poll.
        let (ready, pause) = (true, Pause::default());
        self.listeners.push(Some(Listener { socket, ready, pause, connections_then: 0, remaining: None }));
    }

    /// Notes the readiness of the listener whose key this is, if it is one's. Returns its number.
    pub fn note(&mut self, key: usize) -> Option<usize> {
        let number = key.wrapping_sub(Settings::TOKENS / 2);
        self.listeners.get_mut(number)?.as_mut()?.ready = true;
        Some(number)
    }

    /// Accepts up to `limit` further connections, and leaves others in the backlog.
    pub fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// Accepts from those listeners that are ready, within the budget. `accept` makes one call to the listener of that
    /// number; there are `connections` now, and `max_connections` at most. Returns how many episodes of pausing began.
    pub fn turn(
        &mut self,
        now: Instant,
        mut connections: usize,
        max_connections: usize,
        mut accept: impl FnMut(usize, &mut dyn Listen<Stream = S>) -> io::Result<Accepted>,
    ) -> u64 {
        let mut pauses = 0;
        let count = self.listeners.len();
        self.first = (self.first + 1) % count.max(1);
        for number in (0..count).map(|number| (self.first + number) % count) {
            let slot = &mut self.listeners[number];
            let Some(listener) = slot else { continue };
            if !listener.ready || !listener.pause.is_over(now, connections < listener.connections_then) {
                continue;
            }
            for _ in 0..ACCEPT_BUDGET {
                if self.limit == Some(0) {
                    return pauses;
                }
                if listener.remaining == Some(0) {
                    *slot = None;
                    break;
                }
                if connections >= max_connections {
                    let tell = || {
                        let (open, verb) = (counted(connections, "connection"), agreeing(connections, "is"));
                        format!(
                            "accepting pauses: {open} {verb} open; further ones wait in the backlog until there is room"
                        )
                    };
                    pauses += u64::from(self.full.begin_episode(now, tell));
                    return pauses;
                }
                match accept(number, &mut *listener.socket) {
                    Ok(accepted) => {
                        listener.pause.succeeded();
                        listener.remaining = listener.remaining.map(|remaining| remaining - 1);
                        if matches!(accepted, Accepted::Connection) {
                            connections += 1;
                            self.limit = self.limit.map(|limit| limit - 1);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        listener.ready = false;
                        listener.pause.succeeded();
                        listener.pause.end_episode(|| "accepting goes on".to_owned());
                        self.full.end_episode(|| "accepting goes on: there is room again".to_owned());
                        if listener.remaining.is_some() {
                            *slot = None;
                        }
                        break;
                    }
                    // The peer left before it was accepted, or a signal came: try the next one.
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
                            && !listener.pause.is_persistent() => {}
                    // EMFILE, ENFILE, ENOBUFS, ENOMEM; and whatever else accept(2) may say, for a loop must not spin on
                    // an error that it does not know, nor on one that stays.
                    Err(error) => {
                        listener.pause.begin(now);
                        listener.connections_then = connections;
                        let tell = || {
                            format!(
                                "accepting pauses: {error}; it is tried again soon, and further connections wait in \
                                 the backlog"
                            )
                        };
                        pauses += u64::from(listener.pause.begin_episode(now, tell));
                        break;
                    }
                }
            }
        }
        pauses
    }

    /// How long the poll may sleep as far as accepting goes; `None`: until something becomes ready, or a connection
    /// closes.
    pub fn sleep(&self, now: Instant, connections: usize, max_connections: usize) -> Option<Duration> {
        if self.limit == Some(0) || connections >= max_connections {
            return None;
        }
        shortest(self.listeners.iter().flatten().filter(|listener| listener.ready).map(|listener| {
            Some(
                listener.paused_until(connections).map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
            )
        }))
    }

    /// Whether connections may be waiting that could be accepted if another one closed: there is no room, or no
    /// descriptor.
    pub fn needs_room(&self, connections: usize, max_connections: usize) -> bool {
        let waits = |listener: &Listener<S>| {
            listener.ready && (connections >= max_connections || listener.paused_until(connections).is_some())
        };
        self.limit != Some(0) && self.listeners.iter().flatten().any(waits)
    }

    /// Whether some listener pauses because the system had no descriptor or no memory for a connection.
    pub fn is_starved(&self) -> bool {
        self.listeners.iter().flatten().any(|listener| listener.pause.is_episode())
    }

    /// Whether a connection may be waiting in a backlog.
    pub fn is_ready(&self) -> bool {
        self.listeners.iter().flatten().any(|listener| listener.ready)
    }

    /// Lets no more connections into the backlogs; those in them are still accepted, and then listening ends.
    pub fn close_backlogs(&mut self) {
        for listener in self.listeners.iter_mut().flatten().filter(|listener| listener.remaining.is_none()) {
            listener.remaining = Some(listener.socket.close_backlog());
            listener.ready = true;
        }
    }

    /// Stops listening at once.
    pub fn close(&mut self) {
        self.listeners.clear();
    }

    /// Whether nothing is listening.
    pub fn is_closed(&self) -> bool {
        self.listeners.iter().all(Option::is_none)
    }
}
