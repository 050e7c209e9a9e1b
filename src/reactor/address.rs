//! Addresses as users write them: `HOST:PORT`, `PORT` on 127.0.0.1, `tcp:HOST:PORT`, `udp:HOST:PORT`, `unix:PATH`, and on Linux `unix:@NAME`.
//!
//! Parsing is kept apart from resolving: what cannot be an address is a mistake on the command line, and a name that
//! does not resolve is a failure at run time.

use crate::count::counted;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// The address that servers listen on and clients dial, unless told otherwise.
pub const DEFAULT: &str = "127.0.0.1:7777";

/// A kind of socket and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A stream over TCP.
    Tcp(Host),
    /// Datagrams over UDP.
    Udp(Host),
    /// A stream within this machine, over the socket file with this path; on Linux a path that begins with `@` stands
    /// for an abstract name, which is in no directory (unix(7)).
    Unix(PathBuf),
}

/// The longest path of a socket file, in bytes: what `sun_path` has room for (unix(7); unix(4) of the BSDs and macOS), but for
/// the zero that ends it.
pub const UNIX_PATH_LIMIT: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };

/// A host, by name or by number, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    host: String,
    port: u16,
}

/// An [`Address`] in numbers: what a socket can be bound or connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A stream over TCP.
    Tcp(SocketAddr),
    /// Datagrams over UDP.
    Udp(SocketAddr),
    /// A stream over the socket file with this path.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressError {
    /// There is no port; this is what was written, with one.
    NoPort(String),
    /// What stands where the port goes is not a number from 0 to 65535.
    Port(String),
    /// There is nothing before the port; this is the port, and what says which kind of socket it is.
    NoHost(String, &'static str),
    /// It is a URL; the address in it is this.
    Url(String),
    /// These are several addresses.
    List(Vec<String>),
    /// An IPv6 address without its brackets, or brackets around something else; this is how to write it.
    Brackets(String),
    /// A character that is in no host name.
    Host(String),
    /// A path that no socket file can have, and why.
    Path(String),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressError::NoPort(address) => write!(f, "it has no port: write it as in {address}"),
            AddressError::Port(port) => {
                write!(f, "{port:?} is not a port, a number from 0 to 65535: write it as in {DEFAULT}")
            }
            AddressError::NoHost(port, kind) => write!(
                f,
                "it names no host (127.0.0.1 is this machine alone; 0.0.0.0 and [::] are all its addresses): write it as in \
                 {kind}127.0.0.1:{port}, {kind}0.0.0.0:{port}, {kind}[::]:{port}"
            ),
            AddressError::Url(address) => write!(f, "it is a URL, and an address is wanted: write it as in {address}"),
            AddressError::List(all) => {
                write!(
                    f,
                    "these are several addresses, and each is an argument of its own: write it as in {}",
                    all.join(" ")
                )
            }
            AddressError::Brackets(address) => {
                write!(f, "an IPv6 address goes into brackets: write it as in {address}")
            }
            AddressError::Host(host) => write!(f, "{host:?} is not a host name: write it as in {DEFAULT}"),
            AddressError::Path(cause) => {
                write!(f, "it cannot be a socket file: {cause}: write it as in unix:/run/echo.sock")
            }
        }
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path).map_err(AddressError::Path);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
            let host = host.rsplit_once('@').map_or(host, |(_user, host)| host);
            let prefix = if scheme == "udp" { "udp:" } else { "" };
            let usual = match scheme {
                "https" => 443,
                "http" => 80,
                _ => 7777,
            };
            let with_port = match host.parse::<Host>() {
                Err(AddressError::NoHost(port, _)) => format!("127.0.0.1:{port}"),
                Err(AddressError::NoPort(_)) => format!("{}:{usual}", host.trim_end_matches(':')),
                _ => host.to_owned(),
            };
            let address =
                format!("{prefix}{}", with_port.parse::<Host>().map_or(DEFAULT.to_owned(), |it| it.to_string()));
            return Err(AddressError::Url(address));
        }
        match text.strip_prefix("udp:") {
            Some(host) => host.parse().map(Address::Udp).map_err(AddressError::of_udp),
            None => text.strip_prefix("tcp:").unwrap_or(text).parse().map(Address::Tcp),
        }
    }
}

/// The address of a socket file, or the reason why there can be no such file.
fn unix(path: &str) -> Result<Address, String> {
    let name = path.strip_prefix('@');
    if name.is_some() && cfg!(not(any(target_os = "linux", target_os = "android"))) {
        return Err("only Linux has abstract names; a file whose name begins with @ is ./@NAME".to_owned());
    }
    // An empty name is Linux's way to ask for any (unix(7)).
    if name.unwrap_or(path).is_empty() {
        return Err("there is no path".to_owned());
    }
    if path.contains('\0') {
        return Err("there is a zero byte in it".to_owned());
    }
    // An abstract name begins with a zero byte, where the @ is, and needs none at its end.
    let limit = UNIX_PATH_LIMIT + usize::from(name.is_some());
    if path.len() > limit {
        return Err(format!("it is {} long, and the kernel takes at most {limit}", counted(path.len(), "byte")));
    }
    Ok(Address::Unix(path.into()))
}

impl FromStr for Host {
    type Err = AddressError;

    /// `HOST:PORT`, or a port alone, which is on 127.0.0.1.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::NoPort(DEFAULT.to_owned()));
        }
        let is_port = text.bytes().all(|byte| byte.is_ascii_digit());
        if is_port {
            let port = text.parse().map_err(|_| AddressError::Port(text.to_owned()))?;
            return Ok(Host { host: "127.0.0.1".to_owned(), port });
        }
        if text.contains(',') {
            let all = text.split(',').map(str::trim).filter(|part| part.parse::<Address>().is_ok());
            let all: Vec<_> = all.map(str::to_owned).collect();
            return Err(match all.len() {
                0 | 1 => AddressError::Host(text.to_owned()),
                _ => AddressError::List(all),
            });
        }
        let with_port = |host: &str| match format!("{host}:7777") {
            address if address.parse::<Host>().is_ok() => AddressError::NoPort(address),
            _ => AddressError::NoPort(DEFAULT.to_owned()),
        };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(|| bracketed(text))?;
                let number = host.split_once('%').map_or(host, |(number, _zone)| number);
                number.parse::<Ipv6Addr>().map_err(|_| bracketed(text))?;
                if matches!(rest, "" | ":") {
                    return Err(with_port(&format!("[{host}]")));
                }
                (host, rest.strip_prefix(':').ok_or_else(|| AddressError::Port(rest.to_owned()))?)
            }
            None => {
                if text.parse::<Ipv6Addr>().is_ok() {
                    return Err(bracketed(text));
                }
                let (host, port) = text.rsplit_once(':').ok_or_else(|| with_port(text))?;
                if host.contains(':') {
                    let is_number = host.contains("::") || host.matches(':').count() > 1;
                    let after = || text.split_once(':').map_or(text, |(_, after)| after).to_owned();
                    return Err(if is_number { bracketed(text) } else { AddressError::Port(after()) });
                }
                if port.is_empty() && !host.is_empty() {
                    return Err(with_port(host));
                }
                (host, port)
            }
        };
        if matches!(host, "" | "*") {
            let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
            return Err(if is_port {
                AddressError::NoHost(port.to_owned(), "")
            } else {
                AddressError::Port(port.to_owned())
            });
        }
        if host.chars().any(|c| c.is_whitespace() || c.is_control() || "/[]@,".contains(c)) {
            return Err(AddressError::Host(host.to_owned()));
        }
        // `u16::from_str` takes a leading plus sign; an address does not.
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { port.parse().ok() } else { None };
        let port = number.ok_or_else(|| AddressError::Port(port.to_owned()))?;
        Ok(Host { host: host.to_owned(), port })
    }
}

/// How to write what looks like an IPv6 address, with its port if it has one.
fn bracketed(text: &str) -> AddressError {
    let bare = text.replace(['[', ']'], "");
    let whole = || bare.parse::<Ipv6Addr>().ok().map(|host| format!("[{host}]:7777"));
    let parts = || {
        let (host, port) = bare.rsplit_once(':')?;
        Some(format!("[{}]:{}", host.parse::<Ipv6Addr>().ok()?, port.parse::<u16>().ok()?))
    };
    AddressError::Brackets(parts().or_else(whole).unwrap_or_else(|| "[::1]:7777".to_owned()))
}

impl AddressError {
    /// The same about a UDP address.
    fn of_udp(self) -> Self {
        match self {
            AddressError::NoPort(address) => AddressError::NoPort(format!("udp:{address}")),
            AddressError::NoHost(port, _) => AddressError::NoHost(port, "udp:"),
            AddressError::Brackets(address) => AddressError::Brackets(format!("udp:{address}")),
            other => other,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A host that is called like a kind of socket needs the prefix to be taken for a host.
            Address::Tcp(host) if ["tcp", "udp", "unix"].contains(&host.host.as_str()) => write!(f, "tcp:{host}"),
            Address::Tcp(host) => write!(f, "{host}"),
            Address::Udp(host) => write!(f, "udp:{host}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "{address}"),
            Endpoint::Udp(address) => write!(f, "udp:{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Its port, if it has any.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Tcp(host) | Address::Udp(host) => Some(host.port),
            Address::Unix(_) => None,
        }
    }

    /// All endpoints that it stands for, in the order that the system's resolver prefers, each once. This may ask the
    /// network, and block.
    ///
    /// # Errors
    ///
    /// What the resolver reports, as for a name that does not exist (getaddrinfo(3)).
    pub fn resolve(&self) -> io::Result<Vec<Endpoint>> {
        Ok(match self {
            Address::Tcp(host) => host.resolve()?.into_iter().map(Endpoint::Tcp).collect(),
            Address::Udp(host) => host.resolve()?.into_iter().map(Endpoint::Udp).collect(),
            Address::Unix(path) => vec![Endpoint::Unix(path.clone())],
        })
    }
}

impl Host {
    /// The name or the number.
    pub fn name(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found: Vec<SocketAddr> = Vec::new();
        let resolved = (self.host.as_str(), self.port).to_socket_addrs();
        // The resolver's own words have no remedy; and no number, which would say what has happened.
        let explain = |error: io::Error| match error.raw_os_error() {
            Some(_) => error,
            None => io::Error::new(
                error.kind(),
                format!("{error}; check the name, or write the address in numbers, as in 127.0.0.1:{}", self.port),
            ),
        };
        for address in resolved.map_err(explain)? {
            if !found.contains(&address) {
                found.push(address);
            }
        }
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

/// Whether an address is one of many hosts, whatever network they are in: multicast, or 255.255.255.255.
pub(crate) fn is_group(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_multicast() || matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> AddressError {
        text.parse::<Address>().unwrap_err()
    }

    #[test]
    fn addresses_print_as_they_were_written() {
        for text in
            ["127.0.0.1:7777", "[::1]:0", "localhost:65535", "[fe80::1%eth0]:1", "udp:[::1]:7", "unix:/run/e.sock"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        #[cfg(target_os = "linux")]
        assert_eq!("unix:@echo".parse::<Address>().unwrap().to_string(), "unix:@echo");
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(error("localhost"), AddressError::NoPort("localhost:7777".into()));
        assert_eq!(error(""), AddressError::NoPort(DEFAULT.into()));
        assert_eq!(error("localhost:"), AddressError::NoPort("localhost:7777".into()));
        assert_eq!(error("udp:localhost"), AddressError::NoPort("udp:localhost:7777".into()));
        assert_eq!(error("localhost:http"), AddressError::Port("http".into()));
        assert_eq!(error("localhost:65536"), AddressError::Port("65536".into()));
        assert_eq!(error("localhost:+1"), AddressError::Port("+1".into()));
        assert_eq!(error(":7777"), AddressError::NoHost("7777".into(), ""));
        assert_eq!(error("udp::7777"), AddressError::NoHost("7777".into(), "udp:"));
        let brackets = |text: &str| AddressError::Brackets(text.to_owned());
        assert_eq!(error("::1"), brackets("[::1]:7777"));
        assert_eq!(error("2001:db8::1:80"), brackets("[2001:db8::1]:80"));
        assert_eq!(error("udp:::1:7"), brackets("udp:[::1]:7"));
        assert_eq!(error("[::1"), brackets("[::1]:7777"));
        assert_eq!(error("[localhost]:1"), brackets("[::1]:7777"));
        assert_eq!(error("[::1]"), AddressError::NoPort("[::1]:7777".into()));
        assert_eq!(error("http://localhost:80/x?y"), AddressError::Url("localhost:80".into()));
        assert_eq!(error("http://localhost"), AddressError::Url("localhost:80".into()));
        assert_eq!(error("tcp://[::1]:7"), AddressError::Url("[::1]:7".into()));
        assert_eq!(error("udp://localhost:7"), AddressError::Url("udp:localhost:7".into()));
        assert_eq!(error("tcp://:80"), AddressError::Url("127.0.0.1:80".into()));
        assert_eq!(error("a:1,b:2"), AddressError::List(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(error("65536"), AddressError::Port("65536".into()));
        assert_eq!(error("a b:80"), AddressError::Host("a b".into()));
        assert_eq!(error("udp:"), AddressError::NoPort(format!("udp:{DEFAULT}")));
        assert_eq!(error("tcp:udp:x"), AddressError::Port("x".into()));
        assert!(matches!(error("unix:"), AddressError::Path(_)));
        for path in ["@", "a\0b"] {
            assert!(matches!(error(&format!("unix:{path}")), AddressError::Path(_)), "{path:?}");
        }
    }

    #[test]
    fn too_long_path_is_refused_with_the_limit() {
        let path = |length: usize| format!("unix:/{}", "x".repeat(length - 1));
        assert!(path(UNIX_PATH_LIMIT).parse::<Address>().is_ok());
        let text = error(&path(UNIX_PATH_LIMIT + 1)).to_string();
        assert!(text.contains(&format!("the kernel takes at most {UNIX_PATH_LIMIT}:")), "{text}");
    }

    #[test]
    fn the_kind_of_socket_can_be_said() {
        let parse = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(parse("tcp:localhost:1"), parse("localhost:1"));
        assert_ne!(parse("udp:localhost:1"), parse("localhost:1"));
        assert_eq!(parse("tcp:unix:1").to_string(), "tcp:unix:1", "a host called unix");
        assert_eq!(parse("7777"), parse("127.0.0.1:7777"));
        assert_eq!(parse("udp:7"), parse("udp:127.0.0.1:7"));
        assert_eq!(parse("unix:1"), Address::Unix("1".into()), "a file called 1");
    }

    #[test]
    fn numbers_resolve_to_themselves() {
        let address: Address = "[::1]:7777".parse().unwrap();
        assert_eq!(address.resolve().unwrap(), [Endpoint::Tcp("[::1]:7777".parse().unwrap())]);
        let address: Address = "udp:127.0.0.1:7".parse().unwrap();
        assert_eq!(address.resolve().unwrap(), [Endpoint::Udp("127.0.0.1:7".parse().unwrap())]);
    }

    proptest! {
        #[test]
        fn parsed_address_prints_back_to_the_same(text in "\\PC*|(udp:|tcp:|unix:)?[a-z0-9.:%\\[\\]]*:[0-9]{1,6}|\\[[0-9a-f:%]*\\]:[0-9]+") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }

        #[test]
        fn every_socket_address_is_one(address in any::<SocketAddr>()) {
            let parsed: Address = address.to_string().parse().unwrap();
            prop_assert_eq!(parsed.to_string(), address.to_string());
        }
    }
}
