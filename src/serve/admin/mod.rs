//! Looking inside a running server, over HTTP: metrics, a sign of health, and a live page of the event loop.
//!
//! This is one more protocol on the same poll, and in the same thread. So there is no lock and no atomic between the
//! loop and those who look at it: what they see is read between two turns, on request, and costs nothing
//! otherwise. The price is that an answer is made on the loop; so answers are small and bounded, those who ask are
//! bounded in number, bytes and time, and none of it depends on how many connections there are.
//!
//! `http` and `request` are the protocol, `metrics` and `state` are what is told, with what the system says of the process
//! (`process`). None of them knows the server; they see it through `StatusSource`.

mod exposition;
mod http;
mod metrics;
mod process;
mod request;
mod state;

use std::time::{Duration, Instant, SystemTime};

use log::debug;

use super::stats::Summary;
use super::tokens;
use crate::reactor::address::Endpoint;
use crate::reactor::{Activity, ListenerCounters, Reactor, Readiness, Settings, Source, Stream};
use exposition::Format;
use http::{Answer, Http};
use request::Request;

/// Connections at once. Further ones wait in the backlog.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// A server's figures at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub summary: Summary,
    /// Messages, where they are counted.
    pub messages: Option<u64>,
    /// Messages that could not be printed, where they are to be.
    pub unprinted: Option<u64>,
    pub max_connections: u64,
    /// How long it has been running.
    pub up: Duration,
    /// How much of that it slept in the poll.
    pub asleep: Duration,
    /// It has been asked to stop.
    pub stopping: bool,
    /// Where it listens at present.
    pub listening: Vec<Endpoint>,
    /// What came of each listener for connections.
    pub listeners: Vec<(String, ListenerCounters)>,
    /// Accepting pauses for want of descriptors or memory.
    pub starved: bool,
}

/// A server that can be looked at.
pub(super) trait StatusSource {
    /// Its figures.
    fn snapshot(&self, now: Instant) -> Snapshot;

    /// The number of slots for connections in its slab.
    fn slots(&self) -> usize;

    /// What the connection in a slot is doing, if there is one: see [`Reactor::activity`].
    fn activity(&self, slot: usize, recent: Duration) -> Option<Activity>;
}

/// The listeners and connections of HTTP clients.
pub(super) struct Admin<S: Stream> {
    pub reactor: Reactor<S, Http>,
    /// Where it listens, with the real ports.
    pub endpoints: Vec<Endpoint>,
    /// When the process was started, as the calendar has it.
    started: SystemTime,
}

impl<S: Stream> Admin<S> {
    /// Without listeners; serves at most `max_connections` at once.
    pub fn new(max_connections: usize) -> Self {
        let settings = Settings {
            first_token: tokens::ADMIN,
            name: "http",
            // A request is short, and one is answered at a time.
            read_size: request::LONGEST,
            max_read_size: request::LONGEST,
            read_budget: request::LONGEST,
            max_connections,
            ..Settings::default()
        };
        Admin { reactor: Reactor::new(Http::default(), settings), endpoints: Vec::new(), started: SystemTime::now() }
    }

    /// Over loopback it answers for this host too, beside the numbers at which it listens.
    pub fn add_host(&mut self, host: &str) {
        self.reactor.protocol_mut().hosts.push(host.to_owned());
    }

    /// Where it listens, with the real ports.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Answers the requests that have come.
    pub fn answer(&mut self, now: Instant, server: &impl StatusSource) {
        for (token, mut request) in self.reactor.protocol_mut().take_requests() {
            let answer = answer(&request, now, self.started, server);
            debug!("http token {}: {request}: {}", token.0 - tokens::ADMIN, answer.status());
            self.reactor.with(token, |http, transport, state| http.answer(transport, state, &mut request, &answer));
        }
        let crowded = self.reactor.is_crowded();
        self.reactor.protocol_mut().crowded = crowded;
    }
}

impl<S: Stream> Source for Admin<S> {
    fn note(&mut self, readiness: Readiness) {
        self.reactor.note(readiness);
    }

    fn turn(&mut self, now: Instant) {
        self.reactor.turn(now);
    }

    fn sleep(&self, now: Instant) -> Option<Duration> {
        if self.reactor.protocol().has_requests() { Some(Duration::ZERO) } else { self.reactor.sleep(now) }
    }
}

const PAGE: &str = include_str!("page.html");

/// What is answered to a request.
fn answer(request: &Request, now: Instant, started: SystemTime, server: &impl StatusSource) -> Answer {
    let (path, open_metrics) = match request {
        Request::Get { path, open_metrics, .. } => (path.split('?').next().unwrap_or_default(), *open_metrics),
        Request::Options { .. } => return Answer::text("200 OK", String::new()),
        Request::Bad { status } => return Answer::text(status, format!("{status}\n")),
    };
    match path {
        "/" => Answer::new("200 OK", "text/html; charset=utf-8", PAGE.to_owned()),
        "/metrics" => {
            let format = if open_metrics { Format::OpenMetrics } else { Format::Text };
            Answer::new("200 OK", format.content_type(), metrics::text(now, started, server, format))
        }
        "/state" => Answer::new("200 OK", "application/json", state::json(now, server)),
        // The loop that answers is alive.
        "/livez" => Answer::text("200 OK", "ok\n".to_owned()),
        "/readyz" | "/healthz" if server.snapshot(now).stopping => {
            Answer::text("503 Service Unavailable", "stopping\n".to_owned())
        }
        "/readyz" | "/healthz" => Answer::text("200 OK", "ok\n".to_owned()),
        _ => Answer::text("404 Not Found", "there are /, /metrics, /livez, /readyz, /healthz and /state\n".to_owned()),
    }
}
