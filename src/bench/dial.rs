//! Where connections go to and come from, and whether there can be so many.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use indicatif::HumanCount;
use ipnet::{IpAddrRange, Ipv4AddrRange, Ipv6AddrRange};

use crate::count::{agreeing, counted};
use crate::reactor::address::{Address, Endpoint};

/// How long to wait for the answer to the probe datagram.
const PROBE: Duration = Duration::from_secs(1);

/// Which of a name's addresses are dialled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Family {
    /// Both.
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Family {
    fn has(self, target: &Endpoint) -> bool {
        match (self, target) {
            (Family::Any, _) => true,
            (_, Endpoint::Unix(_)) => false,
            (family, Endpoint::Tcp(target) | Endpoint::Udp(target)) => target.is_ipv4() == (family == Family::V4),
        }
    }
}

/// One address to dial, and the local addresses from which it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub target: Endpoint,
    pub sources: Sources,
}

/// All ways that lead to `address`, in the order in which the system's resolver prefers them.
///
/// # Errors
///
/// If there is none: the name does not resolve, it has no address of that family, or none that the sources can reach; or
/// if a source is no address of this machine.
pub(super) fn routes(address: &Address, family: Family, sources: &Sources) -> anyhow::Result<Vec<Route>> {
    let resolved = address.resolve().with_context(|| format!("cannot resolve {address}"))?;
    let fitting: Vec<_> = resolved.iter().filter(|target| family.has(target)).collect();
    if fitting.is_empty() {
        let (number, flag) = if family == Family::V4 { (4, "-4") } else { (6, "-6") };
        let has: Vec<_> = resolved.iter().map(ToString::to_string).collect();
        bail!("{address} has no IPv{number} address ({flag}): it is {}", has.join(", "));
    }
    for source in &sources.0 {
        if let Err(error) = UdpSocket::bind((*source, 0)) {
            bail!("cannot dial from {source}: {error}. It must be an address of this machine (--source)");
        }
    }
    let routes: Vec<_> = fitting
        .into_iter()
        .map(|target| Route { target: target.clone(), sources: sources.toward(target) })
        .filter(|route| sources.0.is_empty() || !route.sources.0.is_empty())
        .collect();
    ensure!(
        !routes.is_empty(),
        "none of the addresses of --source can reach {address}: they are of another family than {}",
        resolved.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
    Ok(routes)
}

/// The first of these routes at whose end somebody answers a datagram; if nobody does, the first that does not refuse
/// it. Nothing else can tell, for datagrams have no connections (udp(7)).
///
/// # Errors
///
/// If all refuse it, with the reason of each.
pub(super) fn answering(routes: Vec<Route>, timeout: Duration) -> anyhow::Result<Route> {
    let mut silent = None;
    let mut refusals = Vec::new();
    for route in routes {
        match probe(&route, timeout.min(PROBE)) {
            Ok(true) => return Ok(route),
            Ok(false) => _ = silent.get_or_insert(route),
            Err(error) => refusals.push(format!("{}: {}", route.target, explain(&error, &route, 0))),
        }
    }
    silent.with_context(|| refusals.join("; "))
}

/// Whether a datagram is answered.
fn probe(route: &Route, timeout: Duration) -> io::Result<bool> {
    let (Endpoint::Udp(target) | Endpoint::Tcp(target)) = &route.target else { return Ok(true) };
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((route.sources.nth(0).unwrap_or(any), 0))?;
    socket.connect(target)?;
    if socket.local_addr()? == *target {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    socket.set_read_timeout(Some(timeout))?;
    socket.send(b"who answers?")?;
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Ok(true),
        Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Why the connection with this number could not be opened, with the remedy where the system's words have none.
pub(super) fn explain(error: &io::Error, route: &Route, number: usize) -> String {
    let (Endpoint::Tcp(target) | Endpoint::Udp(target)) = &route.target else { return error.to_string() };
    let source = route.sources.nth(number).or_else(|| local_address(*target));
    match (error.kind(), source) {
        // With a source of its own, bind(2) reports it; without, connect(2).
        (io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse, Some(source)) => format!(
            "{error}: no local port of {source} is free to reach {target}. Ports of connections that this side closed \
             wait in TIME_WAIT for a minute (tcp(7)): dial from more addresses (--source), close less often \
             (--reconnect), or widen net.ipv4.ip_local_port_range (sysctl)"
        ),
        (io::ErrorKind::AddrNotAvailable, None) => {
            format!("{error}: this machine has no address to reach {target} from; is IPv6 off?")
        }
        _ => error.to_string(),
    }
}

/// The address that the system would dial `target` from.
fn local_address(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Local addresses to dial from: `127.0.0.1`, `127.0.0.1,127.0.0.2`, `127.0.0.1-127.0.0.9`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources(Vec<IpAddr>);

/// The most addresses that are taken at once.
const MAX_SOURCES: usize = 65_536;

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Sources::parse(text).map_err(|cause| format!("{cause}: write it as in 127.0.0.1-127.0.0.9"))
    }
}

impl Sources {
    fn parse(text: &str) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let [first, last] = [first, last].map(|text| text.trim().parse::<IpAddr>().map_err(|_| text));
            let first = first.map_err(|text| format!("{text:?} is not an IP address"))?;
            let last = last.map_err(|text| format!("{text:?} is not an IP address"))?;
            let range: IpAddrRange = match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4AddrRange::new(first, last).into(),
                (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6AddrRange::new(first, last).into(),
                _ => return Err(format!("{part:?} goes from IPv4 to IPv6, or back")),
            };
            if first > last {
                return Err(format!("{part:?} goes backwards"));
            }
            addresses.extend(range.take(MAX_SOURCES + 1));
            if addresses.len() > MAX_SOURCES {
                return Err(format!("more than {MAX_SOURCES} addresses"));
            }
        }
        Ok(Sources(addresses))
    }
}

impl Sources {
    /// The address for the connection with this number: each in turn.
    pub(super) fn nth(&self, number: usize) -> Option<IpAddr> {
        self.0.get(number.checked_rem(self.0.len())?).copied()
    }

    /// The addresses.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.0
    }

    /// The addresses that can reach `target`: those of its family.
    fn toward(&self, target: &Endpoint) -> Sources {
        let fits = |ip: &&IpAddr| match target {
            Endpoint::Tcp(target) | Endpoint::Udp(target) => ip.is_ipv4() == target.is_ipv4(),
            Endpoint::Unix(_) => false,
        };
        Sources(self.0.iter().filter(fits).copied().collect())
    }
}

/// Makes sure that `connections` more descriptors may be opened.
///
/// # Errors
///
/// If they may not, with the numbers and what to do.
pub(super) fn check_descriptors(connections: usize, room: usize, limit: Option<u64>) -> anyhow::Result<()> {
    ensure!(
        connections <= room,
        "{} {} more than the limit on open files allows: it is {}, which leaves room for {}. \
         Raise it (ulimit -n), or share the work among several processes and add up what they report (echoloop report \
         --merge)",
        counted(connections, "connection"),
        agreeing(connections, "is"),
        HumanCount(limit.unwrap_or(0)),
        HumanCount(room as u64)
    );
    Ok(())
}

/// Makes sure that there are local ports for `connections` to one address.
///
/// # Errors
///
/// If there are not, with the numbers and what to do.
pub(super) fn check_ports(connections: usize, sources: &Sources) -> anyhow::Result<()> {
    let Some((first, last)) = local_ports() else { return Ok(()) };
    let each = usize::from(last - first) + 1;
    let addresses = sources.0.len().max(1);
    ensure!(
        connections <= each * addresses,
        "{} are more than there are local ports: {each} (from {first} to {last}) for each of {}. Dial from more addresses (--source 127.0.0.1-127.0.0.{}), or widen \
         net.ipv4.ip_local_port_range (sysctl)",
        counted(connections, "connection"),
        counted(addresses, "local address"),
        connections.div_ceil(each).min(254)
    );
    Ok(())
}

/// The ports that the system gives to outgoing connections, if it tells (ip(7), `ip_local_port_range`).
fn local_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<Sources>().unwrap_err()
    }

    #[test]
    fn lists_and_ranges_are_taken_in_turn() {
        let sources: Sources = "127.0.0.9,127.0.0.254-127.0.1.1".parse().unwrap();
        let taken: Vec<_> = (0..6).map(|number| sources.nth(number).unwrap().to_string()).collect();
        assert_eq!(taken, ["127.0.0.9", "127.0.0.254", "127.0.0.255", "127.0.1.0", "127.0.1.1", "127.0.0.9"]);
        assert_eq!("::1-::3".parse::<Sources>().unwrap().addresses().len(), 3);
        assert_eq!(Sources::default().nth(7), None);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error("127.0.0").contains("\"127.0.0\""));
        assert!(error("127.0.0.1,").contains("\"\""));
        assert!(error("127.0.0.2-127.0.0.1").contains("backwards"));
        assert!(error("127.0.0.1-::1").contains("IPv6"));
        assert!(error("10.0.0.0-11.0.0.0").contains("65536"));
        assert!(error("::-ffff::").contains("65536"));
    }

    #[test]
    fn missing_descriptors_or_ports_are_named_with_remedy() {
        let text = check_descriptors(2000, 1000, Some(1024)).unwrap_err().to_string();
        assert!(
            text.contains("2,000") && text.contains("1,024") && text.contains("1,000") && text.contains("ulimit -n")
        );
        assert!(check_descriptors(1000, 1000, Some(1024)).is_ok());
        if local_ports().is_some() {
            let text = check_ports(70_000, &Sources::default()).unwrap_err().to_string();
            assert!(text.contains("70,000") && text.contains("--source"), "{text}");
            assert!(check_ports(70_000, &"127.0.0.1-127.0.0.99".parse().unwrap()).is_ok());
        }
    }

    fn route(target: &str, sources: &str) -> Route {
        let target = target.parse::<Address>().unwrap().resolve().unwrap().remove(0);
        Route { target, sources: if sources.is_empty() { Sources::default() } else { sources.parse().unwrap() } }
    }

    #[test]
    fn sources_and_families_choose_among_addresses() {
        let routes = |address: &str, family, sources: &str| {
            let sources = if sources.is_empty() { Sources::default() } else { sources.parse().unwrap() };
            routes(&address.parse().unwrap(), family, &sources).map_err(|error| error.to_string())
        };
        assert_eq!(routes("[::1]:7", Family::V6, "127.0.0.1,::1"), Ok(vec![route("[::1]:7", "::1")]));
        assert_eq!(routes("udp:127.0.0.1:7", Family::V4, ""), Ok(vec![route("udp:127.0.0.1:7", "")]));
        for (address, family, sources, complaint) in [
            ("[::1]:7", Family::V4, "", "[::1]:7 has no IPv4 address (-4): it is [::1]:7"),
            ("127.0.0.1:7", Family::V6, "", "127.0.0.1:7 has no IPv6 address (-6): it is 127.0.0.1:7"),
            ("unix:/x", Family::V6, "", "unix:/x has no IPv6 address (-6): it is unix:/x"),
            ("[::1]:7", Family::Any, "127.0.0.1", "they are of another family than [::1]:7"),
            ("127.0.0.1:7", Family::Any, "127.0.0.1,192.0.2.77", "cannot dial from 192.0.2.77: "),
        ] {
            let error = routes(address, family, sources).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    /// Makes a short load over these routes.
    fn load(flags: &str, routes: &[Route]) -> anyhow::Result<crate::bench::Run> {
        let flags = ["bench example.org:7 --warm-up 0s -n 100", flags].join(" ");
        let config = crate::bench::Config::of_flags(&flags);
        let loop_parts = crate::bench::machine::take_signals(&config)?;
        crate::bench::run_over(&config, loop_parts, routes.to_vec())
    }

    /// A route to a server that echoes, with the number of connections that it has accepted.
    fn server() -> (Route, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let route = route(&listener.local_addr().unwrap().to_string(), "");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                let stream = stream.unwrap();
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        (route, accepted)
    }

    /// A route to where nobody listens.
    fn nobody() -> Route {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        route(&listener.local_addr().unwrap().to_string(), "")
    }

    #[test]
    fn the_first_address_that_accepts_is_measured() {
        let ((first, accepted), (second, spared), closed) = (server(), server(), nobody());
        let run = load("-c 3", &[closed.clone(), first.clone(), second]).unwrap();
        assert_eq!((run.messages.replies, run.error_count(), run.connections.opened), (100, 0, 3));
        assert_eq!(run.addresses, [first.target.to_string()]);
        assert_eq!(run.config.address, "example.org:7");
        assert_eq!(accepted.load(Ordering::Relaxed), 3, "finding out costs no connection");
        assert_eq!(spared.load(Ordering::Relaxed), 0);
        let error = load("-c 3", &[closed.clone(), nobody()]).unwrap_err().to_string();
        assert!(error.contains("example.org:7") && error.contains(&closed.target.to_string()), "{error}");
        assert_eq!(error.matches("refused").count(), 2, "{error}");
    }

    #[test]
    fn all_addresses_are_dialled_on_request() {
        let ((first, one), (second, two)) = (server(), server());
        let run = load("-c 4 --all-addresses", &[first.clone(), second.clone()]).unwrap();
        assert_eq!((run.messages.replies, run.connections.opened), (100, 4));
        assert_eq!(run.addresses, [first.target.to_string(), second.target.to_string()]);
        assert_eq!((one.load(Ordering::Relaxed), two.load(Ordering::Relaxed)), (2, 2));
        // One of them is dead, which is an error that names it.
        let closed = nobody();
        let run = load("-c 4 --all-addresses", &[first, closed.clone()]).unwrap();
        assert_eq!(run.errors[0].count, 2);
        assert!(run.errors[0].first.starts_with(&format!("{}: ", closed.target)), "{:?}", run.errors);
        // So do datagrams, and replies that did not come.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent = route(&format!("udp:{}", socket.local_addr().unwrap()), "");
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let routes = [silent, route(&format!("udp:{closed}"), "")];
        let run = load("-c 2 --all-addresses --timeout 50ms", &routes).unwrap();
        assert!(run.errors[0].first.starts_with(&format!("udp:{closed}: ")), "{:?}", run.errors);
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let mute = route(&mute.local_addr().unwrap().to_string(), "");
        let run = load("-c 1 -r 100 --all-addresses --timeout 50ms", &[mute.clone(), nobody()]).unwrap();
        assert!(run.errors[0].first.starts_with(&format!("{}: ", mute.target)), "{:?}", run.errors);
    }

    #[test]
    fn a_datagram_finds_out_who_answers() {
        let [silent, answering] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let [silent_route, answering_route] =
            [&silent, &answering].map(|socket| route(&format!("udp:{}", socket.local_addr().unwrap()), ""));
        let closed_route = route(&format!("udp:{closed}"), "127.0.0.2");
        let echo = thread::spawn(move || {
            let (length, peer) = answering.recv_from(&mut [0; 64]).unwrap();
            answering.send_to(&vec![0; length], peer).unwrap();
        });
        let choose = |routes: &[&Route]| super::answering(routes.iter().copied().cloned().collect(), PROBE);
        assert_eq!(choose(&[&closed_route, &answering_route]).unwrap(), answering_route);
        echo.join().unwrap();
        let patience = Duration::from_millis(1);
        assert_eq!(super::answering(vec![closed_route.clone(), silent_route.clone()], patience).unwrap(), silent_route);
        let error = choose(&[&closed_route]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("udp:{closed}: ")) && error.contains("refused"), "{error}");
    }

    #[test]
    fn lack_of_ports_names_source_and_remedy() {
        for kind in [io::ErrorKind::AddrNotAvailable, io::ErrorKind::AddrInUse] {
            let sources = route("127.0.0.1:7", "127.0.0.4,127.0.0.5");
            for (number, source) in [(0, "127.0.0.4"), (3, "127.0.0.5")] {
                let text = explain(&kind.into(), &sources, number);
                assert!(text.contains(&format!("no local port of {source} ")) && text.contains("TIME_WAIT"), "{text}");
            }
            assert!(explain(&kind.into(), &route("127.0.0.1:7", ""), 0).contains("no local port of 127.0.0.1 "));
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(explain(&refused, &route("127.0.0.1:7", ""), 0), refused.to_string());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-f.:,-]*|127\\.0\\.0\\.[0-9]{1,3}(-127\\.0\\.[0-9]\\.[0-9]{1,3})?(,[0-9a-f]{0,4}::[0-9a-f]{0,3})*") {
            if let Ok(sources) = text.parse::<Sources>() {
                let again = sources.addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                prop_assert_eq!(again.parse(), Ok(sources));
            }
        }
    }
}
