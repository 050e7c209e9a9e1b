//! The PROXY protocol: the header with which a balancer says for whom it speaks.
//!
//! Both versions are understood: a line of text, and a binary header (W. Tarreau, "The PROXY protocol, versions 1 & 2",
//! 2020, haproxy.org). A crate reads them; this module knows when a header is whole, and how long it may be. It does
//! not know what becomes of the address.

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};

/// How version 1 begins.
const TEXT: &[u8] = b"PROXY ";

/// The longest line of version 1, its CRLF included.
const LONGEST_LINE: usize = 107;

/// The longest header of version 2 that is taken, in bytes. The protocol allows 64 KiB of extensions; those in use are
/// short.
const LONGEST: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The beginning of a header.
    Incomplete,
    /// A whole header, of so many bytes, and the address it tells. None if the proxy speaks for itself, as in a health
    /// check, or does not know.
    Complete { length: usize, source: Option<SocketAddr> },
    /// No header, and why.
    Malformed(String),
}

/// Looks for a header at the beginning of a connection's bytes.
pub(super) fn parse(bytes: &[u8]) -> Header {
    let malformed = |cause: &str| Header::Malformed(cause.to_owned());
    if TEXT.starts_with(&bytes[..bytes.len().min(TEXT.len())]) {
        // The crate takes a number that is cut short for a wrong one, so it is shown whole lines alone.
        let line = &bytes[..bytes.len().min(LONGEST_LINE)];
        if !line.windows(2).any(|pair| pair == b"\r\n") {
            return if bytes.len() < LONGEST_LINE { Header::Incomplete } else { malformed("its line does not end") };
        }
    }
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) => Header::Complete {
            length: header.header.len(),
            source: match header.addresses {
                v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
                v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
                v1::Addresses::Unknown => None,
            },
        },
        HeaderResult::V2(Ok(header)) => Header::Complete {
            length: header.header.len(),
            source: match header.addresses {
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::IPv4(it) => Some((it.source_address, it.source_port).into()),
                v2::Addresses::IPv6(it) => Some((it.source_address, it.source_port).into()),
                v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
            },
        },
        HeaderResult::V2(Err(v2::ParseError::Incomplete(_) | v2::ParseError::Partial(..))) if bytes.len() < LONGEST => {
            Header::Incomplete
        }
        HeaderResult::V1(Err(error)) => Header::Malformed(error.to_string()),
        HeaderResult::V2(Err(error)) => Header::Malformed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(length: usize, source: Option<&str>) -> Header {
        Header::Complete { length, source: source.map(|text| text.parse().unwrap()) }
    }

    /// A header of version 2 that speaks for `source`.
    fn binary(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let addresses = v2::Addresses::from((source, destination));
        v2::Builder::with_addresses(v2::Version::Two | v2::Command::Proxy, v2::Protocol::Stream, addresses)
            .build()
            .unwrap()
    }

    #[test]
    fn both_versions_tell_the_address_and_where_the_payload_begins() {
        let text = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 7777\r\nhello";
        assert_eq!(parse(text), complete(text.len() - 5, Some("192.0.2.1:40000")));
        let text = b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 7777\r\n\xff\r\n";
        assert_eq!(parse(text), complete(text.len() - 3, Some("[2001:db8::1]:40000")));
        for source in ["192.0.2.1:40000", "[2001:db8::1]:40000"] {
            let source = source.parse().unwrap();
            let header = binary(source, source);
            let bytes = [&header[..], b"PROXY TCP4"].concat();
            assert_eq!(parse(&bytes), Header::Complete { length: header.len(), source: Some(source) });
        }
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        assert_eq!(parse(b"PROXY UNKNOWN\r\nx"), complete(15, None));
        assert_eq!(parse(b"PROXY UNKNOWN 1 2 3 4\r\n"), complete(23, None));
        let mut local = binary("192.0.2.1:1".parse().unwrap(), "192.0.2.1:1".parse().unwrap());
        local[12] = 0x20;
        assert_eq!(parse(&local), complete(local.len(), None));
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_that_is_known() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 100]].concat();
        let mut endless = binary("192.0.2.1:1".parse().unwrap(), "192.0.2.1:1".parse().unwrap());
        endless[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        endless.resize(LONGEST, 0);
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"P\r",
            b"proxy ",
            b"\r\n\r\n\0\r\nQUIX",
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 99999 1\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 1\r\n",
            &long,
            &endless,
        ] {
            assert!(matches!(parse(bytes), Header::Malformed(_)), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_header_may_come_in_any_pieces(source: SocketAddr, destination: SocketAddr, text: bool, payload: Vec<u8>) {
            prop_assume!(source.is_ipv4() == destination.is_ipv4());
            let (from, to) = (source, destination);
            let header = if text {
                let family = if from.is_ipv4() { 4 } else { 6 };
                format!("PROXY TCP{family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
            } else {
                binary(from, to)
            };
            for length in 0..header.len() {
                prop_assert_eq!(parse(&header[..length]), Header::Incomplete);
            }
            let source = SocketAddr::new(from.ip(), from.port()); // without a scope, which headers do not tell
            let whole = [&header[..], &payload].concat();
            prop_assert_eq!(parse(&whole), Header::Complete { length: header.len(), source: Some(source) });
        }

        #[test]
        fn any_bytes_are_judged_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..200), prefix in 0..3) {
            let prefix: &[u8] = [&b""[..], TEXT, b"\r\n\r\n\0\r\nQUIT\n"][prefix as usize];
            let bytes = [prefix, &bytes].concat();
            match parse(&bytes) {
                Header::Complete { length, .. } => prop_assert!((1..=bytes.len()).contains(&length)),
                Header::Incomplete => prop_assert!(bytes.len() < LONGEST),
                Header::Malformed(cause) => prop_assert!(!cause.is_empty()),
            }
        }
    }
}
