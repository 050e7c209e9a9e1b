//! Requests of HTTP/1.1, as far as it takes to be looked at: GET, HEAD and OPTIONS (RFC 9110, RFC 9112).
//!
//! A crate parses heads; here is judged what they ask for. It is not known here what there is to be asked for.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The longest request head in bytes.
pub(super) const LONGEST: usize = 16 * 1024;

/// The most header fields.
const FIELDS: usize = 128;

pub(super) const BAD_REQUEST: &str = "400 Bad Request";
pub(super) const METHOD_NOT_ALLOWED: &str = "405 Method Not Allowed";
pub(super) const MISDIRECTED: &str = "421 Misdirected Request";
pub(super) const TOO_LARGE: &str = "431 Request Header Fields Too Large";

/// A request that has come whole, or cannot.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::serve) enum Request {
    /// A GET, or the HEAD of one: the answer is the same, without its content.
    Get {
        path: String,
        head: bool,
        /// It prefers OpenMetrics to plain text.
        open_metrics: bool,
        /// The client goes on using the connection.
        keep: bool,
    },
    /// What can be asked is asked.
    Options { keep: bool },
    /// It is answered with this status, and the connection is closed.
    Bad { status: &'static str },
}

impl Request {
    /// Whether the connection is kept after the answer, where that is for the client to say.
    pub fn keep(&mut self) -> Option<&mut bool> {
        match self {
            Request::Get { keep, .. } | Request::Options { keep } => Some(keep),
            Request::Bad { .. } => None,
        }
    }
}

/// As the log says it.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Get { path, head, .. } => write!(f, "{} {path}", if *head { "HEAD" } else { "GET" }),
            Request::Options { .. } => f.write_str("OPTIONS"),
            Request::Bad { .. } => f.write_str("a request that is refused"),
        }
    }
}

/// The request at the beginning of `bytes`; `None` if it is not whole. `knows` says whether a host is one to answer for.
pub(super) fn parse(bytes: &[u8], knows: impl Fn(&str) -> bool) -> Option<Request> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => return None,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Some(Request::Bad { status: TOO_LARGE }),
        Err(_) => return Some(Request::Bad { status: BAD_REQUEST }),
    };
    Some(judge(&head, length == bytes.len(), knows).unwrap_or_else(|status| Request::Bad { status }))
}

/// What a whole head asks for, or the status that it gets; `alone` if nothing came after it.
fn judge(head: &httparse::Request<'_, '_>, alone: bool, knows: impl Fn(&str) -> bool) -> Result<Request, &'static str> {
    let values = |name: &'static str| {
        let named = head.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    };
    let method = head.method.unwrap_or_default();
    if !["GET", "HEAD", "OPTIONS"].contains(&method) {
        return Err(METHOD_NOT_ALLOWED);
    }
    let (target, is_current) = (head.path.unwrap_or_default(), head.version == Some(1));
    // There is one host (RFC 9112, 3.2), and a target that names one goes before it (3.2.2).
    let mut hosts = values("host");
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(BAD_REQUEST),
        (None, _) if is_current => return Err(BAD_REQUEST),
        (None, _) => None,
        (Some(host), None) => Some(str::from_utf8(host).ok().and_then(host_of).ok_or(BAD_REQUEST)?),
    };
    let (host, path) = match target.split_once("://") {
        _ if target.starts_with('/') => (host, target),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let path = if rest[end..].starts_with('/') { &rest[end..] } else { "/" };
            (Some(host_of(&rest[..end]).ok_or(BAD_REQUEST)?), path)
        }
        _ if target == "*" && method == "OPTIONS" => (host, target),
        _ => return Err(BAD_REQUEST),
    };
    if host.is_some_and(|host| !knows(host)) {
        return Err(MISDIRECTED);
    }
    // A body would have to be told from the next request, and none of these needs one.
    if values("transfer-encoding").next().is_some() || values("content-length").any(|value| value != b"0") {
        return Err(BAD_REQUEST);
    }
    let says = |option: &[u8]| {
        values("connection")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|it| it.trim_ascii().eq_ignore_ascii_case(option))
    };
    let persists = if is_current { !says(b"close") } else { says(b"keep-alive") };
    let keep = persists && alone;
    if method == "OPTIONS" {
        return Ok(Request::Options { keep });
    }
    let accepts = values("accept").filter_map(|value| str::from_utf8(value).ok());
    let open_metrics = prefers_open_metrics(accepts.flat_map(|value| value.split(',')));
    Ok(Request::Get { path: path.to_owned(), head: method == "HEAD", open_metrics, keep })
}

/// The host of `host[:port]`, if it is one (RFC 3986, 3.2.2).
fn host_of(authority: &str) -> Option<&str> {
    let end = authority.find(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match authority[end..].find(':') {
        Some(colon) => (&authority[..end + colon], &authority[end + colon + 1..]),
        None => (authority, ""),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(number) => number.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty() && host.bytes().all(|it| it.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&it))
        }
    };
    (is_host && port.bytes().all(|it| it.is_ascii_digit())).then_some(host)
}

/// Whether a client that accepts these media types prefers OpenMetrics to plain text. One that does not say so gets the text
/// that everybody can read.
fn prefers_open_metrics<'a>(accepted: impl Iterator<Item = &'a str>) -> bool {
    let (mut open_metrics, mut text) = (0.0, None);
    for range in accepted {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let weight = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("q"));
        let weight = weight.map_or(1.0, |(_, weight)| weight.parse::<f32>().unwrap_or(0.0));
        if media.eq_ignore_ascii_case("application/openmetrics-text") {
            open_metrics = weight.max(open_metrics);
        } else if media.eq_ignore_ascii_case("text/plain") {
            text = Some(weight.max(text.unwrap_or(0.0)));
        }
    }
    open_metrics > 0.0 && text.is_none_or(|text| open_metrics >= text)
}

/// Whether a host is this machine, as it calls itself, or one of `own`.
pub(super) fn is_local(host: &str, own: &[String]) -> bool {
    let name = host.trim_end_matches('.');
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let number = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let number = number.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    is("localhost")
        || name.rsplit_once('.').is_some_and(|(_, last)| last.eq_ignore_ascii_case("localhost"))
        || number.is_some_and(|ip| ip.is_loopback())
        || own.iter().any(|own| is(own) || number.is_some_and(|ip| own.parse() == Ok(ip)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(path: &str, keep: bool) -> Option<Request> {
        Some(Request::Get { path: path.to_owned(), head: false, open_metrics: false, keep })
    }

    /// What the bytes ask for, over a connection from elsewhere.
    fn parse(bytes: &[u8]) -> Option<Request> {
        super::parse(bytes, |_| true)
    }

    #[test]
    fn a_get_is_taken_when_it_is_whole() {
        let head = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for length in 0..head.len() {
            assert_eq!(parse(&head.as_bytes()[..length]), None, "{length}");
        }
        assert_eq!(parse(head.as_bytes()), get("/metrics", true));
        assert_eq!(parse(head.as_bytes()).unwrap().to_string(), "GET /metrics", "in the log");
        assert_eq!(parse(format!("{head}GET").as_bytes()), get("/metrics", false), "the next one came too early");
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n"), get("/", false));
        assert_eq!(parse(b"GET / HTTP/1.0\r\n\r\n"), get("/", false));
        assert_eq!(parse(b"GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n"), get("/", true));
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), get("/", true));
        assert_eq!(parse(b"GET HTTP://x:80/a?b HTTP/1.1\r\nHost: y\r\n\r\n"), get("/a?b", true), "the absolute form");
        assert_eq!(parse(b"GET http://[::1]?b HTTP/1.1\r\nHost: y\r\n\r\n"), get("/", true));
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {}\r\n\r\n", "x".repeat(LONGEST - 50));
        assert_eq!(parse(long.as_bytes()), get("/", true));
    }

    #[test]
    fn head_and_options_are_understood() {
        let host = "HTTP/1.1\r\nHost: x\r\n\r\n";
        let Some(Request::Get { head: true, .. }) = parse(format!("HEAD /metrics {host}").as_bytes()) else { panic!() };
        for target in ["/metrics", "*", "http://x/"] {
            let request = parse(format!("OPTIONS {target} {host}").as_bytes());
            assert_eq!(request, Some(Request::Options { keep: true }), "{target}");
        }
    }

    #[test]
    fn one_host_is_required_and_ours_over_loopback() {
        let own = ["echo.example", "192.0.2.7"].map(str::to_owned);
        let ask = |head: &str| super::parse(format!("{head}\r\n\r\n").as_bytes(), |host| is_local(host, &own));
        for host in [
            "localhost:9090",
            "LocalHost.",
            "app.localhost",
            "127.0.0.1",
            "127.8.9.1:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "echo.example:80",
            "ECHO.example",
            "192.0.2.7:80",
        ] {
            assert_eq!(ask(&format!("GET / HTTP/1.1\r\nHost: {host}")), get("/", true), "{host}");
            assert_eq!(ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: evil.example")), get("/", true), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "notlocalhost", "192.0.2.8", "127.0.0.1.evil.example:80"]
        {
            let refused = Some(Request::Bad { status: MISDIRECTED });
            assert_eq!(ask(&format!("GET / HTTP/1.1\r\nHost: {host}")), refused, "{host}");
            assert_eq!(ask(&format!("GET / HTTP/1.0\r\nHost: {host}")), refused, "{host}");
            assert_eq!(ask(&format!("OPTIONS * HTTP/1.1\r\nHost: {host}")), refused, "{host}");
            assert_eq!(ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: localhost")), refused, "{host}");
        }
        for head in [
            "GET / HTTP/1.1",
            "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
            "GET / HTTP/1.0\r\nHost: localhost\r\nhost: evil.example",
            "GET / HTTP/1.1\r\nHost:",
            "GET / HTTP/1.1\r\nHost: local host",
            "GET / HTTP/1.1\r\nHost: localhost:http",
            "GET / HTTP/1.1\r\nHost: a@localhost",
            "GET / HTTP/1.1\r\nHost: [localhost]",
            "GET http:/// HTTP/1.1\r\nHost: localhost",
            "GET ftp://localhost/ HTTP/1.1\r\nHost: localhost",
            "GET localhost HTTP/1.1\r\nHost: localhost",
            "GET * HTTP/1.1\r\nHost: localhost",
        ] {
            assert_eq!(ask(head), Some(Request::Bad { status: BAD_REQUEST }), "{head}");
        }
        assert_eq!(ask("GET / HTTP/1.0"), get("/", false), "HTTP/1.0 knows no hosts");
    }

    #[test]
    fn open_metrics_is_sent_only_when_asked() {
        let prefers = |accept: &str| prefers_open_metrics(accept.split(','));
        // As Prometheus asks, 2.x and 3.x.
        assert!(prefers(
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
        ));
        assert!(prefers(
            "application/vnd.google.protobuf;q=0.6, application/openmetrics-text; version=1.0.0; escaping=allow-utf-8; q=0.5"
        ));
        assert!(prefers("Application/OpenMetrics-Text"));
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "text/plain, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=much",
        ] {
            assert!(!prefers(accept), "{accept}");
        }
    }

    #[test]
    fn anything_else_gets_the_status_it_deserves() {
        let bad = |status| Some(Request::Bad { status });
        for method in ["POST", "get", "TRACE"] {
            let head = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(parse(head.as_bytes()), bad(METHOD_NOT_ALLOWED), "{head}");
        }
        for head in [
            "GET / HTTP/2.0\r\n\r\n",
            "\x16\x03\x01\x02\0\x01",
            "GET / HTTP/1.1\r\nHost: x\r\nbroken\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(parse(head.as_bytes()), bad(BAD_REQUEST), "{head}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(LONGEST));
        assert_eq!(parse(long.as_bytes()), bad(TOO_LARGE));
        assert_eq!(parse(&long.as_bytes()[..LONGEST]), bad(TOO_LARGE), "it need not be waited for");
        assert_eq!(parse(format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200)).as_bytes()), bad(TOO_LARGE));
    }

    proptest! {
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
