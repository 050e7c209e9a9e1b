//! Where connections are made from, and whether there can be so many.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::ensure;

use crate::reactor::address::Endpoint;

/// Local addresses to dial from: `127.0.0.1`, `127.0.0.1,127.0.0.2`, `127.0.0.1-127.0.0.9`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources(Vec<IpAddr>);

/// The most addresses that are taken at once.
const MOST_SOURCES: u128 = 65_536;

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let [first, last] = [first, last].map(|text| text.trim().parse::<IpAddr>().map_err(|_| text));
            let first = first.map_err(|text| format!("{text:?} is no IP address"))?;
            let last = last.map_err(|text| format!("{text:?} is no IP address"))?;
            let range = match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(first.to_bits())..=u128::from(last.to_bits()),
                (IpAddr::V6(first), IpAddr::V6(last)) => first.to_bits()..=last.to_bits(),
                _ => return Err(format!("{part:?} goes from IPv4 to IPv6")),
            };
            if range.is_empty() {
                return Err(format!("{part:?} goes backwards"));
            }
            if range.end() - range.start() >= MOST_SOURCES - addresses.len() as u128 {
                return Err(format!("more than {MOST_SOURCES} addresses"));
            }
            addresses.extend(range.map(|bits| match first {
                IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
                IpAddr::V6(_) => IpAddr::V6(bits.into()),
            }));
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
    ///
    /// # Errors
    ///
    /// If there are some, but none of that family.
    pub(super) fn toward(&self, target: &Endpoint) -> anyhow::Result<Sources> {
        let fits = |ip: &IpAddr| match target {
            Endpoint::Tcp(target) | Endpoint::Udp(target) => ip.is_ipv4() == target.is_ipv4(),
            Endpoint::Unix(_) => false,
        };
        let fitting: Vec<IpAddr> = self.0.iter().copied().filter(fits).collect();
        ensure!(
            self.0.is_empty() || !fitting.is_empty(),
            "none of the addresses of --source can reach {target}: they are of another family"
        );
        Ok(Sources(fitting))
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
        "{connections} connections are more than the limit on open files allows: it is {}, which leaves room for {room}. \
         Raise it (ulimit -n), or share the work among several processes and add up what they report (echoloop report \
         --merge)",
        limit.unwrap_or(0)
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
        "{connections} connections are more than there are local ports: {each} (from {first} to {last}) for each of \
         {addresses} local address{}. Dial from more addresses (--source 127.0.0.1-127.0.0.{}), or widen \
         net.ipv4.ip_local_port_range (sysctl)",
        if addresses == 1 { "" } else { "es" },
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
    fn what_cannot_be_had_is_said_with_numbers_and_remedy() {
        let text = check_descriptors(2000, 1000, Some(1024)).unwrap_err().to_string();
        assert!(text.contains("2000") && text.contains("1024") && text.contains("1000") && text.contains("ulimit -n"));
        assert!(check_descriptors(1000, 1000, Some(1024)).is_ok());
        if local_ports().is_some() {
            let text = check_ports(70_000, &Sources::default()).unwrap_err().to_string();
            assert!(text.contains("70000") && text.contains("--source"), "{text}");
            assert!(check_ports(70_000, &"127.0.0.1-127.0.0.99".parse().unwrap()).is_ok());
        }
    }

    #[test]
    fn sources_of_the_other_family_are_left_out() {
        let sources: Sources = "127.0.0.1,::1".parse().unwrap();
        let target = &Endpoint::Tcp("[::1]:7".parse().unwrap());
        assert_eq!(sources.toward(target).unwrap(), "::1".parse().unwrap());
        assert!("127.0.0.1".parse::<Sources>().unwrap().toward(target).is_err());
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
