//! Addresses as users write them: `HOST:PORT`, `PORT` on 127.0.0.1, `tcp:HOST:PORT`, `udp:HOST:PORT`, `unix:PATH`, and on Linux `unix:@NAME`.
//!
//! Parsing is kept apart from resolving: what cannot be an address is a mistake on the command line, and a name that
//! does not resolve is a failure at run time.

use crate::count::counted;
use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
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
    /// There is no port, or what stands there is not a number from 0 to 65535.
    Port(String),
    /// There is nothing before this port.
    NoHost(String),
    /// It is a URL; the address in it is this.
    Url(String),
    /// These are several addresses.
    List,
    /// An IPv6 address without its brackets, or brackets around something else.
    Brackets,
    /// A character that is in no host name.
    Host(String),
    /// A path that no socket file can have, and why.
    Path(String),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressError::Port(port) if port.is_empty() => {
                write!(f, "it has no port: write HOST:PORT, as in {DEFAULT}, 7777 for short, or unix:PATH")
            }
            AddressError::Port(port) => {
                write!(f, "{port:?} is not a port: a number from 0 to 65535, as in {DEFAULT}")
            }
            AddressError::NoHost(port) => write!(
                f,
                "it has no host: 127.0.0.1:{port} is this machine alone; 0.0.0.0:{port} and [::]:{port} are all its \
                 addresses, to listen on"
            ),
            AddressError::Url(address) => write!(f, "it is a URL: write {address}"),
            AddressError::List => {
                write!(f, "these are several addresses: write each as an argument of its own, as in a:1 b:2")
            }
            AddressError::Brackets => write!(f, "an IPv6 address goes into brackets, as in [::1]:7777"),
            AddressError::Host(host) => write!(f, "{host:?} is not a host name: write HOST:PORT, as in {DEFAULT}"),
            AddressError::Path(cause) => write!(f, "it cannot be a socket file: {cause}"),
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
            let address = match host.parse::<Host>() {
                Ok(host) => format!("{prefix}{host}"),
                Err(AddressError::Port(port)) if port.is_empty() && !host.is_empty() => {
                    let port = if scheme == "https" {
                        443
                    } else if scheme == "http" {
                        80
                    } else {
                        7777
                    };
                    format!("{prefix}{host}:{port}")
                }
                Err(_) => format!("{prefix}HOST:PORT, as in {prefix}{DEFAULT}"),
            };
            return Err(AddressError::Url(address));
        }
        match text.strip_prefix("udp:") {
            Some(host) => host.parse().map(Address::Udp),
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
        return Err("there is no path: write unix:/run/echo.sock".to_owned());
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
        let is_port = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_port {
            let port = text.parse().map_err(|_| AddressError::Port(text.to_owned()))?;
            return Ok(Host { host: "127.0.0.1".to_owned(), port });
        }
        if text.contains(',') {
            return Err(AddressError::List);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(AddressError::Brackets)?;
                let number = host.split_once('%').map_or(host, |(number, _zone)| number);
                number.parse::<Ipv6Addr>().map_err(|_| AddressError::Brackets)?;
                (host, rest.strip_prefix(':').ok_or_else(|| AddressError::Port(rest.to_owned()))?)
            }
            None => {
                if text.parse::<Ipv6Addr>().is_ok() {
                    return Err(AddressError::Brackets);
                }
                let (host, port) = text.rsplit_once(':').ok_or(AddressError::Port(String::new()))?;
                if host.contains(':') {
                    return Err(AddressError::Brackets);
                }
                (host, port)
            }
        };
        if host.is_empty() {
            return Err(AddressError::NoHost(port.to_owned()));
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

    fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found: Vec<SocketAddr> = Vec::new();
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
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
        assert_eq!(error("localhost"), AddressError::Port(String::new()));
        assert_eq!(error(""), AddressError::Port(String::new()));
        assert_eq!(error("localhost:"), AddressError::Port(String::new()));
        assert_eq!(error("localhost:http"), AddressError::Port("http".into()));
        assert_eq!(error("localhost:65536"), AddressError::Port("65536".into()));
        assert_eq!(error("localhost:+1"), AddressError::Port("+1".into()));
        assert_eq!(error(":7777"), AddressError::NoHost("7777".into()));
        assert_eq!(error("::1"), AddressError::Brackets);
        assert_eq!(error("::1:7777"), AddressError::Brackets);
        assert_eq!(error("[::1"), AddressError::Brackets);
        assert_eq!(error("[localhost]:1"), AddressError::Brackets);
        assert_eq!(error("[::1]"), AddressError::Port(String::new()));
        assert_eq!(error("http://localhost:80/x?y"), AddressError::Url("localhost:80".into()));
        assert_eq!(error("http://localhost"), AddressError::Url("localhost:80".into()));
        assert_eq!(error("tcp://[::1]:7"), AddressError::Url("[::1]:7".into()));
        assert_eq!(error("udp://localhost:7"), AddressError::Url("udp:localhost:7".into()));
        assert_eq!(error("a:1,b:2"), AddressError::List);
        assert_eq!(error("65536"), AddressError::Port("65536".into()));
        assert_eq!(error("a b:80"), AddressError::Host("a b".into()));
        assert_eq!(error("udp:"), AddressError::Port(String::new()));
        assert_eq!(error("tcp:udp:x"), AddressError::Port("x".into()));
        assert!(matches!(error("unix:"), AddressError::Path(_)));
        for path in ["@", "a\0b"] {
            assert!(matches!(error(&format!("unix:{path}")), AddressError::Path(_)), "{path:?}");
        }
    }

    #[test]
    fn a_path_that_is_too_long_says_the_limit() {
        let path = |length: usize| format!("unix:/{}", "x".repeat(length - 1));
        assert!(path(UNIX_PATH_LIMIT).parse::<Address>().is_ok());
        let text = error(&path(UNIX_PATH_LIMIT + 1)).to_string();
        assert!(text.ends_with(&format!("the kernel takes at most {UNIX_PATH_LIMIT}")), "{text}");
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
        fn what_is_an_address_prints_back_to_the_same(text in "\\PC*|(udp:|tcp:|unix:)?[a-z0-9.:%\\[\\]]*:[0-9]{1,6}|\\[[0-9a-f:%]*\\]:[0-9]+") {
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
