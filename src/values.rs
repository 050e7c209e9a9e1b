//! Values as users write them: durations, sizes, rates, counts, networks, words.
//!
//! One grammar for every option of every command. Each refusal says what is wrong and shows an example that works; clap adds the
//! option and the input.

use std::net::IpAddr;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;

use crate::reactor::address::{Address, AddressError};
use crate::serve::canonical;

/// The longest duration taken: longer ones are a slip of the pen, and overflow sums with the clock's time.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The largest message, in bytes.
const LARGEST: u64 = 1 << 30;

/// The lowest rate, per second: what is due once in days is never due in a run, and overflows sums with the clock's time.
const SLOWEST: f64 = 0.001;

/// The most connections that can be asked for: more than descriptors, and so that sums do not overflow.
const MAX_CONNECTIONS: u64 = 100_000_000;

/// The largest count of messages: up to here JSON's numbers are exact in every language (RFC 8259, section 6).
const MAX_MESSAGES: u64 = 1 << 53;

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}: write it as in 250ms, 10s, 5m"))?;
    if duration > LONGEST {
        return Err("more than a year".to_owned());
    }
    Ok(duration)
}

pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

pub(crate) fn buffer_size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}: write it as in 4096, 64KiB, 1MiB"))?;
    match size.as_u64() {
        0 => Err("it must be more than nothing".to_owned()),
        // SO_SNDBUF and SO_RCVBUF are C ints, and the kernel doubles them (socket(7)).
        bytes if bytes > i32::MAX as u64 / 2 => Err("more than 1 GiB".to_owned()),
        bytes => Ok(bytes as usize),
    }
}

pub(crate) fn message_size(text: &str) -> Result<(u64, u64), String> {
    let size = |text: &str| -> Result<u64, String> {
        let size: ByteSize = text.parse().map_err(|error| format!("{error}: write it as in 64, 16KiB, 1..4KiB"))?;
        match size.as_u64() {
            0 => Err("a message has at least one byte".to_owned()),
            bytes if bytes > LARGEST => Err("more than 1 GiB".to_owned()),
            bytes => Ok(bytes),
        }
    };
    let (smallest, largest) = text.split_once("..").unwrap_or((text, text));
    match (size(smallest)?, size(largest)?) {
        (smallest, largest) if smallest > largest => Err(format!("{smallest} is more than {largest}")),
        sizes => Ok(sizes),
    }
}

pub(crate) fn positive_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (SLOWEST..=1e9).contains(&rate) => Ok(rate),
        Ok(_) => Err("it must be at least 0.001 and at most 1e9 per second".to_owned()),
        Err(error) => Err(format!("{error}: write it as in 50000, 0.5, 1e6")),
    }
}

pub(crate) fn connections(text: &str) -> Result<usize, String> {
    match text.parse::<u64>() {
        Ok(number) if number <= MAX_CONNECTIONS => Ok(number as usize),
        Ok(_) => Err(format!("more than {MAX_CONNECTIONS}")),
        Err(error) => Err(format!("{error}")),
    }
}

pub(crate) fn messages(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) if number <= MAX_MESSAGES => Ok(number),
        Ok(_) => Err(format!("more than {MAX_MESSAGES}")),
        Err(error) => Err(format!("{error}")),
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// A network, or a single address; of IPv4 addresses that are written as IPv6 ones, the IPv4 network.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let single = |_| text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse::<IpNet>().or_else(single);
    let network = network.map_err(|_| "write it as in 10.0.0.0/8, 2001:db8::/32, 192.0.2.1".to_owned())?;
    match canonical(network) {
        IpNet::V6(_) if network.addr().to_canonical().is_ipv4() => {
            Err("IPv4 addresses in IPv6 form have a prefix of 96 at least, as in ::ffff:10.0.0.0/104".to_owned())
        }
        network => Ok(network),
    }
}

pub(crate) fn http_address(text: &str) -> Result<Address, String> {
    let is_port = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let address = if is_port { format!("127.0.0.1:{text}").parse() } else { text.parse() };
    match address.map_err(|error: AddressError| error.to_string())? {
        Address::Udp(_) => Err("HTTP is not spoken over UDP here".to_owned()),
        address => Ok(address),
    }
}

pub(crate) fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty message is no word".to_owned());
    }
    if text.contains(['\r', '\n']) {
        return Err("a message ends at a newline, so it has none in it".to_owned());
    }
    Ok(text.to_owned())
}

/// A text to look for.
pub(crate) fn expectation(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty text is everywhere".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_understood() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(buffer_size("64KiB"), Ok(65536));
        assert_eq!(buffer_size("4096"), Ok(4096));
    }

    #[test]
    fn networks_and_http_addresses_are_understood() {
        for (text, network_of) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("::1", "::1/128"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), network_of);
        }
        for (text, address) in [("9090", "127.0.0.1:9090"), ("[::]:80", "[::]:80"), ("unix:/x", "unix:/x")] {
            assert_eq!(http_address(text).unwrap().to_string(), address);
        }
        for mistake in ["", "99999", "udp:127.0.0.1:80", "localhost"] {
            assert!(http_address(mistake).is_err(), "{mistake}");
        }
    }

    proptest! {
        #[test]
        fn durations_print_back_to_the_same(text in "([0-9]{1,6} ?(ns|us|ms|s|m|h|days) ?){1,4}") {
            if let Ok(parsed) = duration(&text) {
                prop_assert_eq!(duration(&humantime::format_duration(parsed).to_string()), Ok(parsed));
            }
        }

        #[test]
        fn sizes_print_back_to_the_same(text in "[0-9]{1,12}(\\.[0-9]{1,3})? ?(|B|k|kB|KiB|M|MiB|G|GiB|TB|PiB|EiB)") {
            if let Ok(parsed) = buffer_size(&text) {
                prop_assert_eq!(buffer_size(&parsed.to_string()), Ok(parsed));
            }
            if let Ok((smallest, largest)) = message_size(&text) {
                prop_assert_eq!(message_size(&format!("{smallest}..{largest}")), Ok((smallest, largest)));
            }
        }

        #[test]
        fn rates_print_back_to_the_same(text in "[0-9.]{1,12}(e-?[0-9]{1,2})?") {
            if let Ok(parsed) = positive_rate(&text) {
                prop_assert_eq!(positive_rate(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
