//! HTTP/1.1 as a protocol on the reactor, as far as it takes to be looked at (RFC 9112): requests are kept until they are
//! whole, bounded in length and time, and answered.
//!
//! One request at a time: a client that sends the next before it has its answer gets that answer, and is closed, which
//! RFC 9112 (9.3.2) lets a server do.
//!
//! A foreign page, in a browser on this machine, could have the name of its server point to 127.0.0.1 and read
//! what is shown here (DNS rebinding). Its requests carry that name in their Host, so over loopback only names of this
//! machine are taken.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use log::{Level, debug, log_enabled};
use mio::Token;

use super::request::{self, METHOD_NOT_ALLOWED, Request};
use crate::reactor::socket::Origin;
use crate::reactor::{CloseReason, Protocol, Refusal, Settings, Stream, Transport};
use crate::serve::logged::Logged;

/// How long a whole request, and the taking of its answer, may take. So one that is slow on purpose does not keep its
/// slot.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection is kept from one answer to the beginning of the next request: longer than the intervals at
/// which Prometheus and health checks ask, a minute by default.
const KEEP_TIMEOUT: Duration = Duration::from_secs(150);

/// How long a connection may be silent before it gives way to others that wait for a slot.
const IDLE: Duration = Duration::from_secs(1);

/// What is sent back.
pub(in crate::serve) struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Answer {
    pub fn new(status: &'static str, content_type: &'static str, body: String) -> Self {
        Answer { status, content_type, body }
    }

    pub fn status(&self) -> &'static str {
        self.status
    }

    pub fn text(status: &'static str, body: String) -> Self {
        Answer::new(status, "text/plain; charset=utf-8", body)
    }

    /// The answer to a request; `keep`: the connection is kept.
    fn encode(&self, request: &Request, keep: bool) -> Vec<u8> {
        let Answer { status, content_type, body } = self;
        let mut bytes = Vec::with_capacity(body.len() + 512);
        let date = httpdate::fmt_http_date(SystemTime::now());
        let connection = if keep { "keep-alive" } else { "close" };
        // The page needs nothing from elsewhere, and tells nothing to others.
        let _ = write!(
            bytes,
            "HTTP/1.1 {status}\r\nDate: {date}\r\nServer: echoloop\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\nConnection: {connection}\r\nCache-Control: no-store\r\nVary: Accept\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
             connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n",
            body.len()
        );
        if *status == METHOD_NOT_ALLOWED || matches!(request, Request::Options { .. }) {
            bytes.extend_from_slice(b"Allow: GET, HEAD, OPTIONS\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        if !matches!(request, Request::Get { head: true, .. }) {
            bytes.extend_from_slice(body.as_bytes());
        }
        bytes
    }
}

/// The protocol.
#[derive(Default)]
pub(in crate::serve) struct Http {
    /// Over loopback requests are taken that are for one of these, by name or number, or for this machine as it calls
    /// itself.
    pub hosts: Vec<String>,
    /// Further connections wait for a slot.
    pub crowded: bool,
    requests: Vec<(Token, Request)>,
}

/// How far a connection has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has come yet.
    New,
    /// A request has begun to come, or its answer has not been taken.
    Asking,
    /// It has been answered.
    Kept,
    /// It is being closed.
    Closing,
}

/// What is remembered about a connection.
pub(in crate::serve) struct Exchange {
    /// What has come of a request.
    head: Vec<u8>,
    stage: Stage,
    /// Since when it is asking, or is asked to.
    since: Instant,
    over_loopback: bool,
    /// For the log, if it tells of connections.
    logged: Option<Logged>,
}

impl Exchange {
    fn keep(&mut self, now: Instant) {
        (self.stage, self.since) = (Stage::Kept, now);
    }
}

impl Http {
    /// The requests that have come since the last time.
    pub fn take_requests(&mut self) -> Vec<(Token, Request)> {
        std::mem::take(&mut self.requests)
    }

    /// Whether a request waits for its answer.
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Sends the answer to a request.
    pub fn answer<S: Stream>(
        &mut self,
        transport: &mut Transport<'_, S>,
        exchange: &mut Exchange,
        request: &mut Request,
        answer: &Answer,
    ) {
        let keep = request.keep().is_some_and(|keep| *keep);
        exchange.head.clear();
        let bytes = answer.encode(request, keep);
        if let Some(logged) = &mut exchange.logged {
            logged.sent += bytes.len() as u64;
        }
        transport.write(&bytes);
        if !keep {
            transport.close();
        } else if transport.waiting() == 0 {
            exchange.keep(transport.now());
        }
    }
}

impl<S: Stream> Protocol<S> for Http {
    type State = Exchange;

    fn accept(&mut self, origin: Origin, now: Instant) -> Result<Exchange, Refusal> {
        let over_loopback = origin.ip().is_some_and(|ip| ip.is_loopback());
        let logged = log_enabled!(Level::Debug).then(|| Logged::new(origin, now));
        Ok(Exchange { head: Vec::new(), stage: Stage::New, since: now, over_loopback, logged })
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, exchange: &mut Exchange, bytes: &[u8]) {
        if exchange.stage == Stage::Kept {
            exchange.since = transport.now();
        }
        exchange.stage = Stage::Asking;
        if let Some(logged) = &mut exchange.logged {
            logged.received += bytes.len() as u64;
        }
        exchange.head.extend_from_slice(bytes);
        // One that waits for its answer already gets that, and no other; so that it does not wait for one, it is closed.
        if let Some((_, request)) = self.requests.iter_mut().find(|(token, _)| *token == transport.token()) {
            if let Some(keep) = request.keep() {
                *keep = false;
            }
            return;
        }
        let knows = |host: &str| !exchange.over_loopback || request::is_local(host, &self.hosts);
        if let Some(request) = request::parse(&exchange.head, knows) {
            self.requests.push((transport.token(), request));
        }
    }

    fn eof(&mut self, transport: &mut Transport<'_, S>, _: &mut Exchange) {
        // A client that has closed its side may still wait for an answer.
        match self.requests.iter_mut().find(|(token, _)| *token == transport.token()) {
            Some((_, request)) => {
                if let Some(keep) = request.keep() {
                    *keep = false;
                }
            }
            None => transport.close(),
        }
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, exchange: &mut Exchange) {
        exchange.keep(transport.now());
    }

    fn deadline(&self, exchange: &Exchange) -> Option<Instant> {
        let timeout = match exchange.stage {
            Stage::New | Stage::Kept if self.crowded => IDLE,
            Stage::New | Stage::Asking => REQUEST_TIMEOUT,
            Stage::Kept => KEEP_TIMEOUT,
            Stage::Closing => return None,
        };
        Some(exchange.since + timeout)
    }

    fn expired(&mut self, transport: &mut Transport<'_, S>, exchange: &mut Exchange) {
        if exchange.stage == Stage::Kept {
            exchange.stage = Stage::Closing;
            transport.close();
        } else {
            transport.abort();
        }
    }

    fn unsent(&mut self, exchange: &mut Exchange, bytes: usize) {
        if let Some(logged) = &mut exchange.logged {
            logged.unsent = bytes as u64;
        }
    }

    fn closed(&mut self, token: Token, exchange: Exchange, reason: &CloseReason) {
        if let Some(logged) = &exchange.logged {
            debug!("http token {}: {}", token.0 % Settings::TOKENS, logged.farewell(reason));
        }
        self.requests.retain(|(asking, _)| *asking != token);
    }
}

#[cfg(test)]
mod tests {
    use super::request::LONGEST;
    use super::*;
    use crate::reactor::scripted::{Scripted, Wire, readable};
    use crate::reactor::{Reactor, Readiness, Settings, Source};
    use proptest::prelude::*;

    #[test]
    fn head_has_no_content_and_options_lists_methods() {
        let answer = |request: &Request| {
            String::from_utf8(Answer::text("200 OK", "the content".to_owned()).encode(request, true)).unwrap()
        };
        let [whole, without] = [false, true]
            .map(|head| answer(&Request::Get { path: "/".to_owned(), head, open_metrics: false, keep: true }));
        assert_eq!(whole, without.clone() + "the content");
        assert!(without.contains("Content-Length: 11\r\n"), "{without}");
        assert!(answer(&Request::Options { keep: true }).contains("Allow: GET, HEAD, OPTIONS\r\n"));
    }

    /// A client, and the loop that it is a client of.
    struct World {
        reactor: Reactor<Scripted, Http>,
        wire: Wire,
        token: Token,
        now: Instant,
        /// How many bytes its socket takes between two events.
        takes: usize,
        /// Requests that were answered.
        asked: Vec<Request>,
    }

    impl World {
        fn new(takes: usize) -> Self {
            let wire = Wire::default();
            wire.0.borrow_mut().conclusive = false;
            let settings = Settings { read_size: LONGEST, max_read_size: LONGEST, ..Settings::default() };
            let mut reactor = Reactor::new(Http::default(), settings);
            let now = Instant::now();
            let token = reactor
                .open(|_, http: &mut Http| {
                    let state = Protocol::<Scripted>::accept(http, Origin::Unix, now);
                    Ok((wire.socket(), state.unwrap()))
                })
                .unwrap();
            World { reactor, wire, token, now, takes, asked: Vec::new() }
        }

        /// A turn as the owner makes it. Each answer is the path.
        fn turn(&mut self) {
            self.wire.0.borrow_mut().room = self.takes;
            let read_closed = self.wire.0.borrow().end;
            let everything = Readiness { writable: true, read_closed, ..readable(self.token) };
            self.reactor.turn_with(self.now, [everything]);
            for (token, mut request) in self.reactor.protocol_mut().take_requests() {
                let body = match &request {
                    Request::Get { path, .. } => path.clone(),
                    Request::Options { .. } => String::new(),
                    Request::Bad { status } => (*status).to_owned(),
                };
                let answer = Answer::text("200 OK", body);
                self.reactor.with(token, |http, transport, state| http.answer(transport, state, &mut request, &answer));
                self.asked.push(request);
            }
        }

        fn sent(&self) -> String {
            String::from_utf8(self.wire.written()).unwrap()
        }

        /// Whether it still has its connection when nothing happens for that long.
        fn lives(&mut self, quiet: Duration) -> bool {
            self.reactor.turn(self.now + quiet);
            !self.wire.dropped()
        }
    }

    #[test]
    fn http_deadline_is_per_request_not_per_byte() {
        let second = Duration::from_secs(1);
        let [less, more] = [REQUEST_TIMEOUT - second, REQUEST_TIMEOUT + second];
        let mut world = World::new(1 << 20);
        assert!(world.lives(less) && !world.lives(more), "it says nothing");
        let mut world = World::new(1 << 20);
        world.now += less;
        world.wire.arrive(b"GET / HT");
        world.turn();
        assert!(!world.lives(2 * second), "a few bytes gain it nothing");
        let mut world = World::new(1 << 20);
        world.now += less;
        world.wire.arrive(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        world.turn();
        assert!(world.lives(KEEP_TIMEOUT - second), "an answer does");
        world.lives(KEEP_TIMEOUT + second);
        assert!(!world.lives(KEEP_TIMEOUT + 10 * second), "and then it is closed");
        let mut world = World::new(1 << 20);
        world.wire.arrive(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        world.turn();
        world.now += 60 * second;
        world.wire.arrive(b"GET");
        world.turn();
        assert!(world.lives(less) && !world.lives(more), "the next request has begun");
        // An answer that is not taken.
        let mut world = World::new(10);
        world.wire.arrive(b"GET /slow HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        world.turn();
        world.now += less;
        world.turn();
        assert!(!world.lives(2 * second));
        assert_eq!(world.sent().len(), 20);
    }

    #[test]
    fn idle_connections_give_way_busy_ones_stay() {
        let second = Duration::from_secs(1);
        for (asked, gives_way) in [("", true), ("GET / HTTP", false), ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true)] {
            let mut world = World::new(1 << 20);
            world.wire.arrive(asked.as_bytes());
            world.turn();
            assert!(world.lives(5 * second), "nobody needs its slot");
            world.reactor.protocol_mut().crowded = true;
            assert!(world.lives(second / 2));
            for seconds in 6..14 {
                world.lives(seconds * second);
            }
            assert_eq!(world.wire.dropped(), gives_way, "{asked:?}");
        }
    }

    #[test]
    fn early_or_late_request_is_not_answered() {
        let mut world = World::new(1 << 20);
        world.wire.arrive(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
        world.turn();
        assert_eq!(world.asked.len(), 1);
        assert!(world.sent().ends_with("/1"), "{}", world.sent());
        let mut world = World::new(1 << 20);
        world.wire.end();
        world.wire.arrive(b"GET /half-closed HTTP/1.1\r\nHost: x\r\n\r\n");
        world.turn();
        assert!(world.sent().contains("Connection: close") && world.sent().ends_with("/half-closed"));
        assert!(world.reactor.is_empty());
    }

    proptest! {
        #[test]
        fn answer_is_same_however_request_is_cut(
            cuts in prop::collection::vec(1usize..30, 1..20),
            takes in 1usize..500,
        ) {
            let mut world = World::new(takes);
            for number in 0..3 {
                let request = format!("GET /{number} HTTP/1.1\r\nHost: here\r\n\r\n");
                let mut rest = request.as_bytes();
                for &cut in cuts.iter().cycle() {
                    let (piece, after) = rest.split_at(cut.min(rest.len()));
                    world.wire.arrive(piece);
                    world.turn();
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                let mut turns = 0;
                while !world.sent().ends_with(&format!("\r\n\r\n/{number}")) {
                    world.turn();
                    turns += 1;
                    prop_assert!(turns < 1000, "it got stuck: {}", world.sent());
                }
                prop_assert_eq!(world.asked.len(), number + 1);
            }
            prop_assert_eq!(world.sent().matches("200 OK").count(), 3);
        }
    }
}
