//! The PROXY protocol: the header with which a balancer tells a client's address.
//!
//! Both versions are understood: a line of text, and a binary header (W. Tarreau, "The PROXY protocol, versions 1 & 2",
//! 2020, haproxy.org). Each byte is judged as soon as it is there, so that no connection is waited for whose header cannot
//! become one; however it is split, the verdict is the same.

use crate::count::counted;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How version 1 begins (2.1).
const TEXT: &[u8] = b"PROXY ";

/// The longest line of version 1, its CRLF included (2.1).
const LONGEST_LINE: usize = 107;

/// How version 2 begins (2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The signature, the version and command, the family and protocol, and the length of what follows (2.2).
const FIXED: usize = 16;

/// The longest header of version 2 that is taken, in bytes. The protocol allows 64 KiB of extensions; those in use are
/// short.
const LONGEST: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The beginning of a header.
    Incomplete,
    /// A whole header, its length in bytes, and the address it tells. None if the proxy speaks for itself, as in a health
    /// check, or does not know.
    Complete { length: usize, source: Option<SocketAddr> },
    /// No header, and why.
    Malformed(String),
}

/// Looks for a header at the beginning of a connection's bytes.
pub(super) fn parse(bytes: &[u8]) -> Header {
    let begins = |with: &[u8]| with.starts_with(&bytes[..bytes.len().min(with.len())]);
    if begins(TEXT) {
        text(bytes).unwrap_or_else(|cause| Header::Malformed(format!("version 1: {cause}")))
    } else if begins(SIGNATURE) {
        binary(bytes).unwrap_or_else(|cause| Header::Malformed(format!("version 2: {cause}")))
    } else {
        let first = &bytes[..bytes.len().min(SIGNATURE.len())];
        Header::Malformed(format!("it begins with \"{}\", as no version does", first.escape_ascii()))
    }
}

/// Version 1: `PROXY TCP4 source destination source-port destination-port`, or `PROXY UNKNOWN` and anything.
fn text(bytes: &[u8]) -> Result<Header, String> {
    let seen = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        if let Some(byte) = seen.iter().position(|&byte| !(b' '..=b'~').contains(&byte))
            && (byte + 1 < seen.len() || seen[byte] != b'\r' || seen.len() == LONGEST_LINE)
        {
            return Err(format!("\"{}\" is not in a line of it", seen[byte].escape_ascii()));
        }
        if seen.len() == LONGEST_LINE {
            return Err(format!("its line does not end within {LONGEST_LINE} bytes"));
        }
        return Ok(Header::Incomplete);
    };
    let line = &bytes[TEXT.len()..end];
    if let Some(byte) = line.iter().find(|&byte| !(b' '..=b'~').contains(byte)) {
        return Err(format!("\"{}\" is not in a line of it", byte.escape_ascii()));
    }
    let words: Vec<&str> = str::from_utf8(line).unwrap_or_default().split(' ').collect();
    let source = match words[..] {
        ["UNKNOWN", ..] => None,
        [family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let ip = |text: &str| match family {
                "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| format!("{text:?} is no IPv4 address")),
                _ => text.parse().map(IpAddr::V6).map_err(|_| format!("{text:?} is no IPv6 address")),
            };
            ip(destination)?;
            port(destination_port)?;
            Some(SocketAddr::new(ip(source)?, port(source_port)?))
        }
        _ => return Err(format!("{:?} is neither UNKNOWN nor a family, two addresses and two ports", words.join(" "))),
    };
    Ok(Header::Complete { length: end + 2, source })
}

/// Digits, and nothing else: `u16::from_str` takes a leading plus sign, and leading zeros, which may mean octal.
fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| format!("{text:?} is no port"))
}

/// Version 2.
fn binary(bytes: &[u8]) -> Result<Header, String> {
    let command = bytes.get(12).copied();
    let is_local = match command {
        None | Some(0x21) => false,
        Some(0x20) => true,
        Some(byte) if byte >> 4 != 2 => return Err(format!("it says that it is version {}", byte >> 4)),
        Some(byte) => return Err(format!("there is no command {}", byte & 0xf)),
    };
    // Of a proxy that speaks for itself, nothing that follows says anything (2.2, on LOCAL).
    let family = bytes.get(13).copied().filter(|_| !is_local);
    let needed = match family {
        None | Some(0x00) => 0,
        Some(0x11 | 0x12) => 12,
        Some(0x21 | 0x22) => 36,
        Some(0x31 | 0x32) => 216,
        Some(byte) => return Err(format!("there is no family and protocol {byte:#04x}")),
    };
    let Some(length) = bytes.get(14..FIXED) else { return Ok(Header::Incomplete) };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < needed {
        return Err(format!("it has {} of addresses, and its family needs {needed}", counted(length, "byte")));
    }
    if FIXED + length > LONGEST {
        return Err(format!("it is {} long, and at most {LONGEST} are taken", counted(FIXED + length, "byte")));
    }
    let Some(rest) = bytes.get(FIXED..FIXED + length) else { return Ok(Header::Incomplete) };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let source = match (family, rest) {
        (Some(0x11 | 0x12), &[a, b, c, d, ..]) => Some((Ipv4Addr::new(a, b, c, d), port(8)).into()),
        (Some(0x21 | 0x22), rest) => rest.first_chunk::<16>().map(|&octets| (Ipv6Addr::from(octets), port(32)).into()),
        _ => None,
    };
    Ok(Header::Complete { length: FIXED + length, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(length: usize, source: Option<&str>) -> Header {
        Header::Complete { length, source: source.map(|text| text.parse().unwrap()) }
    }

    fn cause(bytes: &[u8]) -> String {
        match parse(bytes) {
            Header::Malformed(cause) => cause,
            other => panic!("{other:?}: {}", bytes.escape_ascii()),
        }
    }

    /// A header of version 2, of these parts.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    /// A header of version 2 that speaks for `source`.
    fn speaks_for(source: SocketAddr, destination: SocketAddr, extensions: &[u8]) -> Vec<u8> {
        let octets = |ip| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        let rest = [octets(source.ip()), octets(destination.ip()), ports, extensions.to_vec()].concat();
        header(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, &rest)
    }

    #[test]
    fn both_versions_give_address_and_start_of_payload() {
        let text = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 7777\r\nhello";
        assert_eq!(parse(text), complete(text.len() - 5, Some("192.0.2.1:40000")));
        let text = b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 7777\r\n\xff\r\n";
        assert_eq!(parse(text), complete(text.len() - 3, Some("[2001:db8::1]:40000")));
        // As its specification has it (2.2), and one with an extension.
        let example = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x9c\x40\x1e\x61hello";
        assert_eq!(parse(example), complete(28, Some("192.0.2.1:40000")));
        let source = "[2001:db8::1]:40000".parse().unwrap();
        let bytes = [&speaks_for(source, source, b"\x04\0\x01\0")[..], b"PROXY TCP4"].concat();
        assert_eq!(parse(&bytes), complete(16 + 36 + 4, Some("[2001:db8::1]:40000")));
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        assert_eq!(parse(b"PROXY UNKNOWN\r\nx"), complete(15, None));
        assert_eq!(parse(b"PROXY UNKNOWN 1 2 3 4\r\n"), complete(23, None));
        for (family, rest) in [(0x00, &b""[..]), (0x11, &[1; 12]), (0x11, b""), (0xff, b"anything")] {
            assert_eq!(parse(&header(0x20, family, rest)), complete(16 + rest.len(), None), "{family}");
        }
        assert_eq!(parse(&header(0x21, 0x00, b"extensions")), complete(26, None));
        assert_eq!(parse(&header(0x21, 0x31, &[b'/'; 216])), complete(232, None), "a Unix socket's path");
    }

    #[test]
    fn invalid_header_is_refused_as_soon_as_known() {
        assert_eq!(cause(b"GET / HTTP/1.1\r\n"), r#"it begins with "GET / HTTP/1", as no version does"#);
        assert_eq!(cause(b"P\r"), r#"it begins with "P\r", as no version does"#);
        assert_eq!(cause(b"proxy "), r#"it begins with "proxy ", as no version does"#);
        assert!(cause(b"\r\n\r\n\0\r\nQUIX").contains("as no version does"));
        assert_eq!(cause(b"PROXY TCP4 192.0.2.1 192.0.2.2 +4000 1\r\n"), r#"version 1: "+4000" is no port"#);
        assert_eq!(cause(b"PROXY TCP4 192.0.2.1 192.0.2.2 0400 1\r\n"), r#"version 1: "0400" is no port"#);
        assert!(matches!(parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 0 1\r\n"), Header::Complete { .. }));
        assert_eq!(cause(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 99999\r\n"), r#"version 1: "99999" is no port"#);
        assert_eq!(cause(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n"), r#"version 1: "" is no port"#);
        assert_eq!(cause(b"PROXY TCP4 ::1 192.0.2.2 1 1\r\n"), r#"version 1: "::1" is no IPv4 address"#);
        assert_eq!(cause(b"PROXY TCP6 ::1 192.0.2.2 1 1\r\n"), r#"version 1: "192.0.2.2" is no IPv6 address"#);
        for line in ["TCP4 192.0.2.1", "UDP4 192.0.2.1 192.0.2.2 1 1", "TCP4  192.0.2.1 192.0.2.2 1 1", ""] {
            let cause = cause(format!("PROXY {line}\r\n").as_bytes());
            assert!(cause.ends_with("is neither UNKNOWN nor a family, two addresses and two ports"), "{cause}");
        }
        assert_eq!(cause(b"PROXY UNKNOWN\n"), r#"version 1: "\n" is not in a line of it"#);
        assert_eq!(cause(b"PROXY UNKNOWN\rx"), r#"version 1: "\r" is not in a line of it"#);
        assert_eq!(cause(b"PROXY UNK\x1b"), r#"version 1: "\x1b" is not in a line of it"#);
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 100]].concat();
        assert_eq!(cause(&long), "version 1: its line does not end within 107 bytes");
        assert_eq!(cause(&header(0x11, 0, b"")[..13]), "version 2: it says that it is version 1");
        assert_eq!(cause(&header(0x22, 0, b"")[..13]), "version 2: there is no command 2");
        assert_eq!(cause(&header(0x21, 0x13, b"")[..14]), "version 2: there is no family and protocol 0x13");
        assert_eq!(
            cause(&header(0x21, 0x11, b"short")[..16]),
            "version 2: it has 5 bytes of addresses, and its family needs 12"
        );
        for command in [0x20, 0x21] {
            let endless = header(command, 0, &vec![0; 65_535]);
            assert_eq!(parse(&endless[..15]), Header::Incomplete);
            for length in [16, 17, 4095, 4096, endless.len()] {
                assert_eq!(cause(&endless[..length]), "version 2: it is 65,551 bytes long, and at most 4096 are taken");
            }
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
                speaks_for(from, to, &payload)
            };
            for length in 0..header.len() {
                prop_assert_eq!(parse(&header[..length]), Header::Incomplete);
            }
            let source = SocketAddr::new(from.ip(), from.port()); // without a scope, which headers do not tell
            let whole = [&header[..], &payload].concat();
            prop_assert_eq!(parse(&whole), Header::Complete { length: header.len(), source: Some(source) });
        }

        #[test]
        fn any_bytes_are_judged_alike_however_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            line in "[ -~]{0,120}(\r\n|\r|\n)?",
            command in prop::sample::select(vec![0x20, 0x21, 0x11, 0x22]),
            family in prop::sample::select(vec![0x00, 0x11, 0x21, 0x31, 0x13]),
        ) {
            let binary = [SIGNATURE, &[command, family], &bytes].concat();
            for bytes in [&bytes[..], &[TEXT, &bytes].concat(), &[TEXT, line.as_bytes()].concat(), &binary] {
                let mut verdict = None;
                for length in 0..=bytes.len() {
                    match (parse(&bytes[..length]), &verdict) {
                        (Header::Incomplete, None) => prop_assert!(length < LONGEST),
                        (header @ Header::Complete { .. }, None) => {
                            let Header::Complete { length: end, .. } = header else { unreachable!() };
                            prop_assert_eq!(end, length);
                            verdict = Some(header);
                        }
                        (Header::Malformed(cause), None) => {
                            prop_assert!(!cause.chars().any(char::is_control), "{:?}", cause);
                            verdict = Some(Header::Malformed(cause));
                        }
                        (header @ Header::Complete { .. }, Some(verdict)) => prop_assert_eq!(&header, verdict),
                        (header, Some(verdict)) => {
                            prop_assert_eq!(matches!(header, Header::Malformed(_)), matches!(verdict, Header::Malformed(_)));
                        }
                    }
                }
            }
        }
    }
}
