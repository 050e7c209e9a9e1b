//! Looking inside a running server, over HTTP: metrics, a sign of health, and a live page of the event loop.
//!
//! This is one more protocol on the same poll, and in the same thread. So there is no lock and no atomic between the
//! loop and those who look at it: what they see is read between two turns, when somebody asks, and costs nothing while
//! nobody does. The price is that an answer is made on the loop; so answers are small and bounded, whoever asks is
//! bounded in number, bytes and time, and none of it depends on how many connections there are.
//!
//! `http` is the protocol, `metrics` and `state` are what is told. None of them knows the server; they see it through
//! [`StatusSource`].

mod http;
mod metrics;
mod state;

use std::time::{Duration, Instant};

use log::debug;
use mio::Token;

use super::acceptor::{Accept, Acceptor};
use super::listener::Listener;
use super::stats::Summary;
use super::tokens;
use crate::reactor::address::Endpoint;
use crate::reactor::{Activity, Reactor, Readiness, Settings};
use http::{Answer, Http, Request};

/// Connections at once. Who comes beyond waits in the backlog.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// How long a connection may take from one answer to having taken the next: for a whole request, and to read what comes.
/// So one that is slow on purpose does not keep its place.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How often impatience is looked for, while there are connections.
const SWEEP: Duration = Duration::from_secs(1);

/// A server's figures at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub summary: Summary,
    /// Messages, where they are counted.
    pub messages: Option<u64>,
    pub max_connections: u64,
    /// How long it has been running.
    pub up: Duration,
    /// How much of that it slept in the poll.
    pub asleep: Duration,
    /// It has been asked to stop.
    pub stopping: bool,
}

/// A server that can be looked at.
pub(super) trait StatusSource {
    /// Its figures.
    fn snapshot(&self, now: Instant) -> Snapshot;

    /// The number of places for connections in its slab.
    fn places(&self) -> usize;

    /// What the connection at a place is activity, if there is one: see [`Reactor::activity`].
    fn activity(&self, place: usize, lately: Duration) -> Option<Activity>;
}

/// The resident memory of this process in bytes, where the system tells (proc(5)).
fn resident_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(procfs::process::Process::myself().ok()?.statm().ok()?.resident * procfs::page_size());
    #[cfg(not(target_os = "linux"))]
    None
}

/// The listeners and connections of those who look.
pub(super) struct Admin<A: Accept = Listener> {
    acceptor: Acceptor<A>,
    reactor: Reactor<A::Stream, Http>,
    endpoints: Vec<Endpoint>,
    /// What became ready since the last turn.
    ready: Vec<Readiness>,
    next_sweep: Instant,
}

impl<A: Accept> Admin<A> {
    /// Answers on `listeners`, at most `max_connections` at once.
    pub fn new(listeners: Vec<(Token, A)>, endpoints: Vec<Endpoint>, max_connections: usize) -> Self {
        let settings = Settings {
            first_token: tokens::ADMIN,
            // A request is short, and one is answered at a time.
            read_size: http::LONGEST,
            largest_read: http::LONGEST,
            read_budget: http::LONGEST,
            ..Settings::default()
        };
        Admin {
            acceptor: Acceptor::new(listeners, max_connections, None),
            reactor: Reactor::new(Http::default(), settings),
            endpoints,
            ready: Vec::new(),
            next_sweep: Instant::now(),
        }
    }

    /// Where it listens, with the real ports.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Notes readiness, if it is of a socket here. Returns whether it was.
    pub fn mark(&mut self, readiness: &Readiness) -> bool {
        if self.acceptor.mark(readiness) {
            return true;
        }
        let ours = tokens::is_admin(readiness.token);
        if ours {
            self.ready.push(*readiness);
        }
        ours
    }

    /// Answers those who asked for something.
    pub fn turn(&mut self, now: Instant, server: &impl StatusSource) {
        let ready = std::mem::take(&mut self.ready);
        if !ready.is_empty() || self.reactor.sleep(now) == Some(Duration::ZERO) {
            self.reactor.protocol_mut().now = now;
            self.reactor.turn(now, ready.iter().copied());
        }
        self.ready = ready;
        self.ready.clear();
        self.acceptor.accept(now, &mut self.reactor);
        for (token, request) in self.reactor.protocol_mut().take_requests() {
            debug!("inside: {request:?}");
            let answer = answer(&request, now, server);
            self.reactor.with(token, |http, transport, state| http.answer(transport, state, &request, &answer));
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            for token in self.reactor.protocol().impatient(now, REQUEST_TIMEOUT) {
                self.reactor.abort(token);
            }
        }
    }

    /// How long the poll may sleep as far as this goes; `None`: until something becomes ready.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        let sweep = (!self.reactor.is_empty()).then(|| self.next_sweep.saturating_duration_since(now));
        [sweep, self.reactor.sleep(now), self.acceptor.sleep(now, &self.reactor)].into_iter().flatten().min()
    }
}

const PAGE: &str = include_str!("page.html");

/// What is answered to a request.
fn answer(request: &Request, now: Instant, server: &impl StatusSource) -> Answer {
    let path = match request {
        Request::Get { path, .. } => path.split('?').next().unwrap_or_default(),
        Request::Bad { status } => return Answer::text(status, format!("{status}\n")),
    };
    match path {
        "/" => Answer::new("200 OK", "text/html; charset=utf-8", PAGE.to_owned()),
        "/metrics" => Answer::new("200 OK", metrics::CONTENT_TYPE, metrics::text(server.snapshot(now))),
        "/state" => Answer::new("200 OK", "application/json", state::json(now, server)),
        "/healthz" if server.snapshot(now).stopping => Answer::text("503 Service Unavailable", "stopping\n".to_owned()),
        "/healthz" => Answer::text("200 OK", "ok\n".to_owned()),
        _ => Answer::text("404 Not Found", "there are /, /metrics, /healthz and /state\n".to_owned()),
    }
}
