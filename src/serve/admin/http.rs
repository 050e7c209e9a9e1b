//! As much of HTTP/1.1 as it takes to answer a GET (RFC 9112), as a protocol on the reactor.
//!
//! A crate parses requests. This module keeps what has come of one, bounds it, and writes answers; it does not know
//! what is asked for. One request at a time: a client that sends the next before it has its answer gets that answer, and
//! is closed, which RFC 9112 (9.3.2) lets a server do.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use mio::Token;

use crate::reactor::socket::Origin;
use crate::reactor::{CloseReason, Protocol, Refusal, Stream, Transport};

/// The longest request head in bytes.
pub(super) const LONGEST: usize = 8 * 1024;

/// The most header fields.
const FIELDS: usize = 64;

/// A request that has come whole, or cannot.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::serve) enum Request {
    Get {
        path: String,
        /// The client goes on using the connection.
        keep: bool,
    },
    /// It is answered with this status, and the connection is closed.
    Bad { status: &'static str },
}

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

    pub fn text(status: &'static str, body: String) -> Self {
        Answer::new(status, "text/plain; charset=utf-8", body)
    }

    fn encode(&self, keep: bool) -> Vec<u8> {
        let Answer { status, content_type, body } = self;
        let mut bytes = Vec::with_capacity(body.len() + 512);
        let date = httpdate::fmt_http_date(SystemTime::now());
        let connection = if keep { "keep-alive" } else { "close" };
        // The page needs nothing from elsewhere, and nothing of it is anybody else's business.
        let _ = write!(
            bytes,
            "HTTP/1.1 {status}\r\nDate: {date}\r\nServer: echoloop\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\nConnection: {connection}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
             connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n",
            body.len()
        );
        if *status == METHOD_NOT_ALLOWED {
            bytes.extend_from_slice(b"Allow: GET\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body.as_bytes());
        bytes
    }
}

const BAD_REQUEST: &str = "400 Bad Request";
const METHOD_NOT_ALLOWED: &str = "405 Method Not Allowed";
const TOO_LARGE: &str = "431 Request Header Fields Too Large";

/// How long a connection may take from one answer to having taken the next: for a whole request, and to read what comes.
/// So one that is slow on purpose does not keep its slot.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The protocol.
#[derive(Default)]
pub(in crate::serve) struct Http {
    requests: Vec<(Token, Request)>,
}

/// What is remembered about a connection.
pub(in crate::serve) struct Exchange {
    /// What has come of a request.
    head: Vec<u8>,
    /// Until when it owes something: a request, or to take its answer.
    due: Instant,
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
        request: &Request,
        answer: &Answer,
    ) {
        let keep = matches!(request, Request::Get { keep: true, .. });
        exchange.head.clear();
        transport.write(&answer.encode(keep));
        if !keep {
            transport.close();
        } else if transport.waiting() == 0 {
            exchange.due = transport.now() + REQUEST_TIMEOUT;
        }
    }
}

impl<S: Stream> Protocol<S> for Http {
    type State = Exchange;

    fn accept(&mut self, _: Origin, now: Instant) -> Result<Exchange, Refusal> {
        Ok(Exchange { head: Vec::new(), due: now + REQUEST_TIMEOUT })
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, exchange: &mut Exchange, bytes: &[u8]) {
        exchange.head.extend_from_slice(bytes);
        // One that waits for its answer already gets that, and no other.
        let waits = self.requests.iter().any(|(token, _)| *token == transport.token());
        if let Some(request) = if waits { None } else { parse(&exchange.head) } {
            self.requests.push((transport.token(), request));
        }
    }

    fn eof(&mut self, transport: &mut Transport<'_, S>, _: &mut Exchange) {
        // Who has said all that it had to say may still wait for an answer.
        match self.requests.iter_mut().find(|(token, _)| *token == transport.token()) {
            Some((_, Request::Get { keep, .. })) => *keep = false,
            Some(_) => {}
            None => transport.close(),
        }
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, exchange: &mut Exchange) {
        exchange.due = transport.now() + REQUEST_TIMEOUT;
    }

    fn deadline(&self, exchange: &Exchange) -> Option<Instant> {
        Some(exchange.due)
    }

    fn closed(&mut self, token: Token, _: Exchange, _: &CloseReason) {
        self.requests.retain(|(asking, _)| *asking != token);
    }
}

/// The request at the beginning of `bytes`; `None` if it is not whole.
fn parse(bytes: &[u8]) -> Option<Request> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return None,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Some(Request::Bad { status: TOO_LARGE }),
        Err(_) => return Some(Request::Bad { status: BAD_REQUEST }),
    };
    if head.method != Some("GET") {
        return Some(Request::Bad { status: METHOD_NOT_ALLOWED });
    }
    let values = |name: &'static str| {
        let named = head.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    };
    // A body would have to be told from the next request, and a GET needs none.
    if values("transfer-encoding").next().is_some() || values("content-length").any(|value| value != b"0") {
        return Some(Request::Bad { status: BAD_REQUEST });
    }
    let says = |option: &[u8]| {
        values("connection")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|it| it.trim_ascii().eq_ignore_ascii_case(option))
    };
    let persists = if head.version == Some(1) { !says(b"close") } else { says(b"keep-alive") };
    let path = head.path.unwrap_or_default().to_owned();
    Some(Request::Get { path, keep: persists && length == bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::scripted::{Scripted, Wire, readable};
    use crate::reactor::{Reactor, Readiness, Settings, Source};
    use proptest::prelude::*;

    fn get(path: &str, keep: bool) -> Option<Request> {
        Some(Request::Get { path: path.to_owned(), keep })
    }

    #[test]
    fn a_get_is_taken_when_it_is_whole() {
        let head = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for length in 0..head.len() {
            assert_eq!(parse(&head.as_bytes()[..length]), None, "{length}");
        }
        assert_eq!(parse(head.as_bytes()), get("/metrics", true));
        assert_eq!(parse(format!("{head}GET").as_bytes()), get("/metrics", false), "the next one came too early");
        assert_eq!(parse(b"GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n"), get("/", false));
        assert_eq!(parse(b"GET / HTTP/1.0\r\n\r\n"), get("/", false));
        assert_eq!(parse(b"GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n"), get("/", true));
        assert_eq!(parse(b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), get("/", true));
    }

    #[test]
    fn anything_else_gets_the_status_it_deserves() {
        let bad = |status| Some(Request::Bad { status });
        for head in ["POST / HTTP/1.1\r\n\r\n", "HEAD / HTTP/1.1\r\n\r\n", "get / HTTP/1.1\r\n\r\n"] {
            assert_eq!(parse(head.as_bytes()), bad(METHOD_NOT_ALLOWED), "{head}");
        }
        for head in [
            "GET / HTTP/2.0\r\n\r\n",
            "\x16\x03\x01\x02\0\x01",
            "GET / HTTP/1.1\r\nbroken\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(parse(head.as_bytes()), bad(BAD_REQUEST), "{head}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(LONGEST));
        assert_eq!(parse(long.as_bytes()), bad(TOO_LARGE));
        assert_eq!(parse(&long.as_bytes()[..LONGEST]), bad(TOO_LARGE), "it need not be waited for");
        assert_eq!(parse(format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100)).as_bytes()), bad(TOO_LARGE));
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
            for (token, request) in self.reactor.protocol_mut().take_requests() {
                let body = match &request {
                    Request::Get { path, .. } => path.clone(),
                    Request::Bad { status } => (*status).to_owned(),
                };
                let answer = Answer::text("200 OK", body);
                self.reactor.with(token, |http, transport, state| http.answer(transport, state, &request, &answer));
                self.asked.push(request);
            }
        }

        fn sent(&self) -> String {
            String::from_utf8(self.wire.written()).unwrap()
        }

        /// Whether it still has its connection when nothing happens for so long.
        fn lives(&mut self, quiet: Duration) -> bool {
            self.reactor.turn(self.now + quiet);
            !self.wire.dropped()
        }
    }

    #[test]
    fn a_client_is_given_time_for_each_request_and_not_for_a_byte() {
        let [less, more] = [REQUEST_TIMEOUT - Duration::from_secs(1), REQUEST_TIMEOUT + Duration::from_secs(1)];
        let mut world = World::new(1 << 20);
        assert!(world.lives(less) && !world.lives(more), "it says nothing");
        let mut world = World::new(1 << 20);
        world.now += less;
        world.wire.arrive(b"GET / HT");
        world.turn();
        assert!(!world.lives(Duration::from_secs(2)), "a few bytes gain it nothing");
        let mut world = World::new(1 << 20);
        world.now += less;
        world.wire.arrive(b"GET / HTTP/1.1\r\n\r\n");
        world.turn();
        assert!(world.lives(less) && !world.lives(more), "an answer does");
        // An answer that is not taken.
        let mut world = World::new(10);
        world.wire.arrive(b"GET /slow HTTP/1.1\r\n\r\n");
        world.turn();
        world.now += less;
        world.turn();
        assert!(!world.lives(Duration::from_secs(2)));
        assert_eq!(world.sent().len(), 20);
    }

    #[test]
    fn what_comes_too_early_or_after_the_end_is_not_answered() {
        let mut world = World::new(1 << 20);
        world.wire.arrive(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n");
        world.turn();
        assert_eq!(world.asked.len(), 1);
        assert!(world.sent().ends_with("/1"), "{}", world.sent());
        let mut world = World::new(1 << 20);
        world.wire.end();
        world.wire.arrive(b"GET /half-closed HTTP/1.1\r\n\r\n");
        world.turn();
        assert!(world.sent().contains("Connection: close") && world.sent().ends_with("/half-closed"));
        assert!(world.reactor.is_empty());
    }

    proptest! {
        #[test]
        fn however_a_request_comes_and_an_answer_is_taken_it_is_the_same(
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

        #[test]
        fn any_bytes_are_judged(bytes: Vec<u8>, text in "(GET|POST|G) /[ -~]{0,20} HTTP/1\\.[01]\r\n([a-zA-Z-]{1,9}: [ -~]{0,9}\r\n){0,3}(\r\n)?") {
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Some(Request::Get { path, .. }) = parse(bytes) {
                    prop_assert!(path.starts_with('/'));
                }
            }
        }
    }
}
