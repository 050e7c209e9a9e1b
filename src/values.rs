//! Values as users write them: durations, sizes, rates, counts, networks, words.
//!
//! One grammar for every option of every command. Each refusal says what is wrong and shows an example that works; clap adds the
//! option and the input.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use indicatif::HumanCount;
use ipnet::{IpNet, Ipv4Net};

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

/// What the letters after a number mean. A k is 1000 everywhere, and a Ki 1024.
const MULTIPLES: [(&str, u64); 3] = [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

/// The nanoseconds of each unit of time, and its names.
const TIMES: [(u64, &[&str]); 10] = [
    (1, &["ns", "nsec", "nanos"]),
    (1_000, &["us", "µs", "usec", "micros"]),
    (1_000_000, &["ms", "msec", "millis"]),
    (1_000_000_000, &["s", "sec", "secs", "second", "seconds"]),
    (60_000_000_000, &["m", "min", "mins", "minute", "minutes"]),
    (3_600_000_000_000, &["h", "hr", "hrs", "hour", "hours"]),
    (86_400_000_000_000, &["d", "day", "days"]),
    (604_800_000_000_000, &["w", "week", "weeks"]),
    (2_630_016_000_000_000, &["month", "months"]),
    (31_557_600_000_000_000, &["y", "yr", "year", "years"]),
];

/// A number as it is written: 10, 0.5, 1_000, 1e6. Its value is `digits` times ten to the power of `exponent`.
#[derive(Debug, Clone, Copy)]
struct Number {
    digits: u128,
    exponent: i32,
}

impl Number {
    /// The number that `text` begins with, and what follows it: a unit, perhaps.
    fn split(text: &str) -> Result<(Number, &str), String> {
        if text.starts_with('-') {
            return Err("it is negative".to_owned());
        }
        let (mut digits, mut decimals, mut exponent) = (0u128, None, 0i32);
        let mut last = None;
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            match next {
                '0'..='9' => {
                    let digit = u128::from(next as u32 - '0' as u32);
                    let longer = digits.checked_mul(10).and_then(|digits| digits.checked_add(digit));
                    digits = longer.ok_or("it has too many digits")?;
                    decimals = decimals.map(|count: i32| count + 1);
                }
                '_' if last.is_some_and(|last: char| last.is_ascii_digit())
                    && rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {}
                '.' if decimals.is_none() && rest[1..].starts_with(|c: char| c.is_ascii_digit()) => decimals = Some(0),
                _ => break,
            }
            last = Some(next);
            rest = &rest[next.len_utf8()..];
        }
        if last.is_none() {
            return Err(if text.is_empty() { "it is empty" } else { "it does not begin with a number" }.to_owned());
        }
        if let Some(power) = rest.strip_prefix(['e', 'E']) {
            let sign = usize::from(power.starts_with(['+', '-']));
            let length = power[sign..].bytes().take_while(u8::is_ascii_digit).count();
            if length > 0 {
                exponent = power[..sign + length].parse().map_err(|_| "its exponent is too large")?;
                rest = &power[sign + length..];
            }
        }
        let exponent = exponent.checked_sub(decimals.unwrap_or(0)).ok_or("its exponent is too large")?;
        Ok((Number { digits, exponent }, rest))
    }

    /// The number `text`, and what its unit stands for.
    fn with_unit(text: &str, unit: impl Fn(&str) -> Option<u64>) -> Result<(Number, u64), String> {
        let (number, rest) = Number::split(text.trim())?;
        let rest = rest.trim_start();
        let factor = if rest.is_empty() { Some(1) } else { unit(rest) };
        Ok((number, factor.ok_or_else(|| stranger(rest))?))
    }

    /// This many times `factor`, and whether that is a whole number; a fraction of one is cut off. `None` if it is more
    /// than can be.
    fn times(self, factor: u64) -> Option<(u128, bool)> {
        if self.digits == 0 {
            return Some((0, true));
        }
        let product = self.digits.checked_mul(factor.into())?;
        match (10u128.checked_pow(self.exponent.unsigned_abs()), self.exponent < 0) {
            (Some(power), false) => Some((product.checked_mul(power)?, true)),
            (None, false) => None,
            (Some(power), true) => Some((product / power, product.is_multiple_of(power))),
            (None, true) => Some((0, false)),
        }
    }

    fn as_f64(self, factor: u64) -> f64 {
        // Only the whole of it is rounded, as the compiler would.
        let number = format!("{}e{}", self.digits, self.exponent).parse().unwrap_or(f64::INFINITY);
        match factor {
            1 => number,
            factor => format!("{}e{}", self.digits, i64::from(self.exponent) + i64::from(factor.ilog10()))
                .parse()
                .unwrap_or(f64::INFINITY),
        }
    }
}

/// What is wrong with `rest`, which stands after a number where its unit goes.
fn stranger(rest: &str) -> String {
    match rest.starts_with(',') {
        true => "there is a comma in the number".to_owned(),
        false => format!("{rest:?} is not a unit that it can have"),
    }
}

fn multiple(unit: &str) -> Option<u64> {
    let unit = if unit == "K" { "k" } else { unit };
    MULTIPLES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// The bytes of units such as B, k, kB, KiB, Ki, M, MB, MiB, up to EiB.
fn bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) => (letter, 1024u64),
        None => (unit, 1000),
    };
    let power = match letter {
        "" if base == 1000 => 0,
        letter => ["k", "m", "g", "t", "p", "e"].iter().position(|it| *it == letter)? as u32 + 1,
    };
    base.checked_pow(power)
}

pub(crate) fn with_example(error: impl std::fmt::Display, examples: &str) -> String {
    format!("{error}: write it as in {examples}")
}

/// The parts of what is written as a list, if `is_taken` takes each of them.
pub(crate) fn list(text: &str, is_taken: impl Fn(&str) -> bool) -> Option<Vec<&str>> {
    [",", ";", "&&", " and ", " "].into_iter().find_map(|separator| {
        let parts: Vec<_> = text.split(separator).map(str::trim).filter(|part| !part.is_empty()).collect();
        (parts.len() > 1 && parts.iter().all(|part| is_taken(part))).then_some(parts)
    })
}

/// The one value of an option that is given once for each: a list is refused as such.
pub(crate) fn one_of_several<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
    let trimmed = |error| parse(text.trim()).map_err(|_| error);
    parse(text).or_else(trimmed).map_err(|error| match list(text, |part| parse(part).is_ok()) {
        Some(parts) => with_example("these are several, and the option is given once for each", parts[0]),
        None => error,
    })
}

/// A rate, without what may be written behind it: all of them are per second.
fn per_unit(text: &str) -> &str {
    let text = text.trim_end();
    ["/s", "/sec", "/second"].iter().find_map(|per| text.strip_suffix(per)).unwrap_or(text)
}

/// So many per second, which need not be a whole number: 0.5, 50k, 1e6, 50k/s.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    number(per_unit(text))
}

/// A number that need not be whole, such as 0.5, 50k or 1e6.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    let (number, factor) = Number::with_unit(text, multiple)?;
    Ok(number.as_f64(factor))
}

/// Nanoseconds: the sum of all its parts, as in 1m 30s. Zero needs no unit.
pub(crate) fn nanoseconds(text: &str) -> Result<u128, String> {
    let mut rest = text.trim();
    let mut sum = 0u128;
    loop {
        let (number, after) = Number::split(rest)?;
        let after = after.trim_start();
        let length = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let unit = &after[..length];
        let found = TIMES.iter().find(|(_, names)| names.contains(&unit)).map(|(factor, _)| *factor);
        let factor = match found {
            Some(factor) => factor,
            None if unit.is_empty() && number.digits == 0 => 1,
            None if unit.is_empty() && after.starts_with(',') => return Err(stranger(after)),
            None if unit.is_empty() => return Err("it has no unit of time".to_owned()),
            None => return Err(format!("{unit:?} is not a unit of time")),
        };
        let part = number.times(factor).and_then(|(nanoseconds, _)| sum.checked_add(nanoseconds));
        sum = part.ok_or("it is too long")?;
        rest = after[length..].trim_start();
        if rest.is_empty() {
            return Ok(sum);
        }
    }
}

/// A time such as 250ms, 10s, 1.5h or 1m 30s.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let nanoseconds = nanoseconds(text).map_err(|error| match with_units(text) {
        Some(examples) => with_example(error, &examples),
        None => with_example(error, "250ms, 10s, 5m"),
    })?;
    if nanoseconds > LONGEST.as_nanos() {
        return Err("more than a year: write it as in 250ms, 10s, 5m".to_owned());
    }
    Ok(Duration::from_nanos(nanoseconds as u64))
}

/// What a number without a unit of time may have meant.
fn with_units(text: &str) -> Option<String> {
    let text = text.trim();
    let (_, rest) = Number::split(text).ok()?;
    let examples = ["ms", "s", "m"].map(|unit| format!("{text}{unit}"));
    let is_taken = rest.is_empty() && examples.iter().all(|example| positive_duration(example).is_ok());
    is_taken.then(|| examples.join(", "))
}

pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than nothing: write it as in 250ms, 10s, 5m".to_owned()),
        duration => Ok(duration),
    }
}

/// Bytes, such as 4096, 64KiB or 10k. What is more than `most` is refused, as more than `named`.
fn size(text: &str, most: u64, named: &str, examples: &str) -> Result<u64, String> {
    let (number, factor) = Number::with_unit(text, bytes).map_err(|error| with_example(error, examples))?;
    match number.times(factor) {
        Some((size, _)) if size <= most.into() => Ok(size as u64),
        _ => Err(with_example(format_args!("more than {named}"), examples)),
    }
}

/// Any number of bytes.
pub(crate) fn any_size(text: &str) -> Result<u64, String> {
    size(text, MAX_MESSAGES, "8 PiB", "0, 4096, 64KiB")
}

pub(crate) fn buffer_size(text: &str) -> Result<usize, String> {
    // SO_SNDBUF and SO_RCVBUF are C ints, and the kernel doubles them (socket(7)).
    match size(text, i32::MAX as u64 / 2, "1 GiB", "4096, 64KiB, 1MiB")? {
        0 => Err("it must be more than nothing: write it as in 4096, 64KiB, 1MiB".to_owned()),
        bytes => Ok(bytes as usize),
    }
}

/// Bytes per second.
pub(crate) fn bandwidth(text: &str) -> Result<u64, String> {
    buffer_size(per_unit(text)).map(|bytes| bytes as u64)
}

pub(crate) fn message_size(text: &str) -> Result<(u64, u64), String> {
    let size = |text: &str| match size(text, LARGEST, "1 GiB", "64, 16KiB, 1..4KiB")? {
        0 => Err("a message has at least one byte: write it as in 64, 16KiB, 1..4KiB".to_owned()),
        bytes => Ok(bytes),
    };
    let (smallest, largest) = text.split_once("..").unwrap_or((text, text));
    if let Some((smallest, largest)) = text.split_once(['-', ':', '~', '…'])
        && size(smallest).is_ok()
        && size(largest).is_ok()
    {
        return Err(with_example("a range has two dots", &format!("{}..{}", smallest.trim(), largest.trim())));
    }
    match (size(smallest)?, size(largest)?) {
        (smallest, largest) if smallest > largest => {
            let (first, second) = text.split_once("..").unwrap_or((text, text));
            Err(with_example(
                format_args!("{smallest} is more than {largest}"),
                &format!("{}..{}", second.trim(), first.trim()),
            ))
        }
        sizes => Ok(sizes),
    }
}

pub(crate) fn positive_rate(text: &str) -> Result<f64, String> {
    match rate(text).map_err(|error| with_example(error, "50000, 50k, 50k/s, 0.5"))? {
        rate if (SLOWEST..=1e9).contains(&rate) => Ok(rate),
        _ => Err("it must be at least 0.001 and at most 1e9 per second: write it as in 50000, 50k".to_owned()),
    }
}

/// Whole numbers within these bounds, such as 10, 50k, 1e6 or 1_000_000.
pub(crate) fn whole<T: TryFrom<u64>>(bounds: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let (least, most) = (*bounds.start(), *bounds.end());
        let example = [10_000, 1000, 64, 10].into_iter().find(|it| bounds.contains(it)).unwrap_or(least);
        let examples = if most >= 1_000_000 { format!("{example}, 50k, 1e6") } else { example.to_string() };
        let (number, factor) = Number::with_unit(text, multiple).map_err(|error| with_example(error, &examples))?;
        let found = match number.times(factor) {
            Some((_, false)) => return Err(with_example("it is not a whole number", &examples)),
            Some((number, true)) => u64::try_from(number).ok().filter(|it| bounds.contains(it)),
            None => None,
        };
        found.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match number.digits {
            0 => with_example(format_args!("it must be at least {least}"), &examples),
            _ => with_example(format_args!("it must be from {least} to {most}"), &examples),
        })
    }
}

pub(crate) fn connections(text: &str) -> Result<usize, String> {
    whole(0..=MAX_CONNECTIONS)(text)
}

pub(crate) fn messages(text: &str) -> Result<u64, String> {
    whole(1..=MAX_MESSAGES)(text)
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    whole(1..=usize::MAX as u64)(text)
}

/// A process, by its number.
pub(crate) fn pid(text: &str) -> Result<i32, String> {
    whole(1..=i32::MAX as u64)(text).map_err(|error| {
        let cause = error.split(": write it as in ").next().unwrap_or_default();
        match text.trim().starts_with(char::is_alphabetic) {
            true => with_example("it is a name, and the number of a process is wanted (pidof tells it)", "4711"),
            false => with_example(cause, "4711"),
        }
    })
}

/// So many in each second.
pub(crate) fn per_second(text: &str) -> Result<NonZeroU32, String> {
    let rate = whole::<u32>(1..=u32::MAX.into())(per_unit(text))?;
    NonZeroU32::new(rate).ok_or_else(|| with_example("it must be at least 1", "100"))
}

/// Messages in flight.
pub(crate) fn depth(text: &str) -> Result<u64, String> {
    whole(1..=65536)(text).map_err(|error| match duration(text) {
        Ok(time) if !time.is_zero() => {
            with_example(format_args!("it is a number of messages in flight (how long is -t {text})"), "1, 32")
        }
        _ => error,
    })
}

/// A network, or a single address; of IPv4 addresses that are written as IPv6 ones, the IPv4 network.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    one_of_several(text, one_network)
}

fn one_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let examples = "10.0.0.0/8, 2001:db8::/32, 192.0.2.1";
    let network = network.map_err(|_| {
        let meant = masked(text);
        with_example("it is not a network in numbers", meant.as_deref().unwrap_or(examples))
    })?;
    match canonical(network) {
        IpNet::V6(_) if network.addr().to_canonical().is_ipv4() => {
            Err(with_example("IPv4 addresses in IPv6 form have a prefix of 96 at least", "::ffff:10.0.0.0/104"))
        }
        network => Ok(network),
    }
}

/// The network that is meant by 10.0.0.*, or by 10.0.0.0/255.255.255.0.
fn masked(text: &str) -> Option<String> {
    if let Some(parts) = text.strip_suffix(".*") {
        let fixed = parts.trim_end_matches(".*");
        let count = fixed.split('.').count();
        let network = format!("{fixed}{}/{}", ".0".repeat(4usize.checked_sub(count)?), 8 * count);
        return network.parse::<IpNet>().ok().map(|_| network);
    }
    let (address, mask) = text.split_once('/')?;
    Ipv4Net::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok().map(|network| network.to_string())
}

pub(crate) fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(with_example("an empty message is not a word", "bye"));
    }
    if text.contains(['\r', '\n']) {
        return Err(with_example("a message ends at a newline, so it has none in it", "bye"));
    }
    Ok(text.to_owned())
}

/// A point in time.
pub(crate) fn instant(text: &str) -> Result<SystemTime, String> {
    let soon = || humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(60)).to_string();
    humantime::parse_rfc3339_weak(text).map_err(|_| with_example("it is not a date and a time in UTC", &soon()))
}

/// A text to look for.
pub(crate) fn expectation(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(with_example("an empty text is everywhere", "pong"));
    }
    Ok(text.to_owned())
}

/// A network of IPv4 addresses in the clothes of IPv6 ones (RFC 4291, 2.5.5.2) as the IPv4 network that it is.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    match (network, network.network().to_canonical()) {
        (IpNet::V6(mapped), IpAddr::V4(network)) if mapped.prefix_len() >= 96 => {
            Ipv4Net::new(network, mapped.prefix_len() - 96).map_or(IpNet::V6(mapped), IpNet::V4)
        }
        _ => network,
    }
}

/// An amount of bytes, as people read it.
pub(crate) fn show_bytes(bytes: u64) -> impl std::fmt::Display {
    bytesize::ByteSize(bytes).display().iec()
}

/// A number that was measured or asked for, as one reads it: whole and with separators if it is large, and never 0 if it
/// is not.
pub(crate) fn show_number(number: f64) -> String {
    match number {
        _ if number >= 99.95 || number <= 0.0 => HumanCount(number.round() as u64).to_string(),
        1.0.. => format!("{number:.1}"),
        0.0001.. => {
            // Three digits, from the first that is not 0 on.
            let decimals = 2 - number.log10().floor() as i32;
            let digits = format!("{number:.*}", decimals.max(0) as usize);
            digits.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{number:.1e}"),
    }
}

/// A time in microseconds as one reads it: three digits and a unit.
pub(crate) fn show_micros(micros: f64) -> String {
    let (value, unit) = match micros {
        _ if micros >= 1e6 => (micros / 1e6, "s"),
        _ if micros >= 1e3 => (micros / 1e3, "ms"),
        _ => (micros, "us"),
    };
    let decimals = match value {
        _ if value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn number_of_any_size_keeps_its_first_digits() {
        for (number, shown) in [
            (0.0, "0"),
            (1e-300, "1.0e-300"),
            (0.000_012_34, "1.2e-5"),
            (0.01, "0.01"),
            (0.033_333, "0.0333"),
            (0.5, "0.5"),
            (0.9999, "1"),
            (1.0, "1.0"),
            (12.34, "12.3"),
            (99.97, "100"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(show_number(number), shown);
        }
    }

    #[test]
    fn units_are_understood() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(buffer_size("64KiB"), Ok(65536));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1e3 ms"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(buffer_size("4096"), Ok(4096));
        assert_eq!(buffer_size("1.5k"), Ok(1500));
        for (text, count) in [("1k", 1000), ("1e3", 1000), ("1_000", 1000), ("50k", 50_000), ("0.5M", 500_000)] {
            assert_eq!(messages(text), Ok(count), "{text}");
            assert_eq!(positive_rate(text), Ok(count as f64), "{text}");
            assert_eq!(message_size(text), Ok((count, count)), "{text}");
        }
        for mistake in ["", "-1", "+1", "1__0", "_1", "1_", "1.", ".5", "1.5", "0x10", "inf", "NaN", "1e99", "1,000"] {
            assert!(messages(mistake).is_err(), "{mistake}");
        }
        assert!(depth("10s").unwrap_err().contains("-t 10s"));
        for range in ["1k-2k", "1k:2k", "1k - 2k"] {
            assert_eq!(message_size(range), Err("a range has two dots: write it as in 1k..2k".to_owned()));
        }
        assert!(pid("nginx").unwrap_err().ends_with("as in 4711") && pid("0").unwrap_err().ends_with("as in 4711"));
    }

    #[test]
    fn networks_are_understood() {
        for (text, network_of) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("::1", "::1/128"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            (" 192.0.2.1 ", "192.0.2.1/32"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), network_of);
        }
    }

    #[test]
    fn network_of_another_notation_is_told_in_ours() {
        for (text, example) in [
            ("10.0.0.*", "10.0.0.0/24"),
            ("10.*.*.*", "10.0.0.0/8"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
            ("10.0.0.256.*", "192.0.2.1"),
            ("10.0.0.0/255.0.255.0", "192.0.2.1"),
        ] {
            assert!(network(text).unwrap_err().ends_with(example), "{text}");
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
        fn one_number_means_the_same_in_every_option(text in "[0-9]{1,3}(_[0-9]{1,3})?(\\.[0-9]{1,4})?(e[0-3])?[kM]?") {
            let rate = number(&text).unwrap();
            if let Ok(count) = whole::<u64>(0..=MAX_MESSAGES)(&text) {
                prop_assert_eq!(count as f64, rate, "{}", text);
                prop_assert_eq!(any_size(&text), Ok(count));
                prop_assert_eq!(whole(0..=MAX_MESSAGES)(&count.to_string()), Ok(count));
            } else {
                prop_assert!(rate.fract() != 0.0, "{}", text);
            }
        }

        #[test]
        fn refusals_of_values_say_how_to_write_them(text in "\\PC*|-[0-9]{1,4}(s|k)?|[0-9]{1,4} ?[a-z]{1,3}") {
            for refusal in [
                duration(&text).err(), buffer_size(&text).err(), message_size(&text).err(), positive_rate(&text).err(),
                messages(&text).err(), connections(&text).err(),
            ].into_iter().flatten() {
                prop_assert!(refusal.contains("as in ") || refusal.starts_with("it must be "), "{}: {}", text, refusal);
            }
        }

        #[test]
        fn rates_print_back_to_the_same(text in "[0-9.]{1,12}(e-?[0-9]{1,2})?k?") {
            if let Ok(parsed) = positive_rate(&text) {
                prop_assert_eq!(positive_rate(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
