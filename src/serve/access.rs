//! Access control: which clients may connect.
//!
//! A `Gate` judges connections: by the network they come from, by how many their source has already, and by how many
//! are accepted in a second. A `DatagramGate` judges datagrams, which have no connections to count, by network, by a rate for
//! each source, and by whether an answer could become a conversation without end. Each refusal has a reason, and is
//! counted by it.
//!
//! A source is an IPv4 address, or an IPv6 network: one host has all of a /64 to choose from (RFC 4291, 2.5.1; RFC 6177).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use clap::Args;
use ipnet::IpNet;

use crate::reactor;
use crate::reactor::address::is_group;
use crate::reactor::socket::Origin;
use crate::values::{self, canonical};

const SECOND: Duration = Duration::from_secs(1);

/// Sources of datagrams that are remembered, where their rate is limited.
const MAX_SOURCES: usize = 65_536;

/// How long a source of datagrams is remembered that has become silent: as long as it was heard of before, within these
/// bounds. So the addresses of a flood, each of them used once, make room for those of the next second, and not those
/// who have been here for a while.
const REMEMBERED: (Duration, Duration) = (SECOND, Duration::from_secs(60));

/// Datagrams from a port below this are not answered: echo, chargen, DNS, NTP and other services that answer whatever
/// they receive live there, and two such services that are made to talk to each other never stop (CVE-2024-2169).
const FIRST_SAFE_PORT: u16 = 1024;

/// Which clients may connect. By default all.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access control")]
pub struct AccessOptions {
    /// Accept only clients from CIDR, like 10.0.0.0/8. It is a network, such as 2001:db8::/32, or a single address. May
    /// be given several times
    #[arg(help_heading = "Access control", long, value_name = "CIDR", value_parser = values::network)]
    pub allow: Vec<IpNet>,

    /// Reject clients from CIDR, whatever --allow says. May be given several times
    #[arg(help_heading = "Access control", long, value_name = "CIDR", value_parser = values::network)]
    pub deny: Vec<IpNet>,

    /// Reject clients that already have N connections. A client is an IPv4 address, or an IPv6 network: see
    /// --ipv6-prefix
    #[arg(help_heading = "Access control", long, value_name = "N", value_parser = values::at_least_one)]
    pub max_per_source: Option<usize>,

    /// Count IPv6 addresses that share their first BITS bits as one client, for --max-per-source and --datagram-rate.
    /// One host commonly has a whole /64 to choose from
    #[arg(help_heading = "Access control", long, value_name = "BITS", default_value_t = 64, value_parser = values::whole::<u8>(0..=128))]
    pub ipv6_prefix: u8,

    /// Accept at most R connections per second, and reject further ones
    #[arg(help_heading = "Access control", long, value_name = "R", value_parser = values::per_second)]
    pub accept_rate: Option<NonZeroU32>,

    /// Answer at most R datagrams per second from each client
    #[arg(help_heading = "Access control", long, value_name = "R", value_parser = values::per_second)]
    pub datagram_rate: Option<NonZeroU32>,

    /// Expect each connection to begin with a PROXY header, version 1 or 2. In it a load balancer passes on the
    /// client's address, for the log, --print and the limits. A connection without a valid header within 5s is closed
    #[arg(help_heading = "Access control", long)]
    pub proxy_protocol: bool,

    /// Trust the PROXY headers of load balancers in CIDR, and reject everybody else; on a unix: socket, its permissions
    /// decide. Implies --proxy-protocol. May be given several times
    #[arg(help_heading = "Access control", long, value_name = "CIDR", value_parser = values::network)]
    pub proxy_from: Vec<IpNet>,
}

impl Default for AccessOptions {
    fn default() -> Self {
        AccessOptions {
            allow: Vec::new(),
            deny: Vec::new(),
            max_per_source: None,
            ipv6_prefix: 64,
            accept_rate: None,
            datagram_rate: None,
            proxy_protocol: false,
            proxy_from: Vec::new(),
        }
    }
}

impl AccessOptions {
    /// Whether connections begin with a PROXY header.
    pub fn has_proxy(&self) -> bool {
        self.proxy_protocol || !self.proxy_from.is_empty()
    }

    /// The same, with networks in the form that addresses are compared in.
    fn canonical(&self) -> Self {
        let canonical = |networks: &[IpNet]| networks.iter().map(|&network| canonical(network)).collect();
        AccessOptions {
            allow: canonical(&self.allow),
            deny: canonical(&self.deny),
            proxy_from: canonical(&self.proxy_from),
            ..self.clone()
        }
    }

    fn judge(&self, ip: IpAddr) -> Result<(), Refusal> {
        if contain(&self.deny, ip) {
            return Err(Refusal::Denied);
        }
        if !self.allow.is_empty() && !contain(&self.allow, ip) {
            return Err(Refusal::NotAllowed);
        }
        Ok(())
    }

    /// What an address is counted by.
    fn source(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.ipv6_prefix.min(128))).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        }
    }
}

fn contain(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

/// Why a client was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is in none of the allowed networks.
    NotAllowed,
    /// It is in a denied network.
    Denied,
    /// Its source has as many connections as it may have.
    PerSource,
    /// More came than may be accepted in a second.
    Rate,
    /// The PROXY header is malformed, or did not come.
    Header,
    /// It is none of those whose PROXY header is believed.
    Proxy,
    /// A datagram whose answer might be answered, without end.
    Loop,
    /// A datagram was sent to, or seems to be from, many at once.
    Broadcast,
}

impl Refusal {
    /// All reasons.
    pub const ALL: [Refusal; 8] = [
        Refusal::NotAllowed,
        Refusal::Denied,
        Refusal::PerSource,
        Refusal::Rate,
        Refusal::Header,
        Refusal::Proxy,
        Refusal::Loop,
        Refusal::Broadcast,
    ];

    /// The reasons why a connection may be refused.
    pub const OF_CONNECTIONS: [Refusal; 6] =
        [Refusal::NotAllowed, Refusal::Denied, Refusal::PerSource, Refusal::Rate, Refusal::Header, Refusal::Proxy];

    /// The reasons why a datagram may not be answered.
    pub const OF_DATAGRAMS: [Refusal; 5] =
        [Refusal::NotAllowed, Refusal::Denied, Refusal::Rate, Refusal::Loop, Refusal::Broadcast];

    /// A word for it, as in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::NotAllowed => "not_allowed",
            Refusal::Denied => "denied",
            Refusal::PerSource => "per_source",
            Refusal::Rate => "rate",
            Refusal::Header => "header",
            Refusal::Proxy => "proxy",
            Refusal::Loop => "loop",
            Refusal::Broadcast => "broadcast",
        }
    }
}

impl Refusal {
    /// What it means, as the log says it.
    pub fn meaning(self) -> &'static str {
        match self {
            Refusal::NotAllowed => "not in an allowed network",
            Refusal::Denied => "in a denied network",
            Refusal::PerSource => "its source has as many connections as it may have",
            Refusal::Rate => "more come than may in a second",
            Refusal::Header => "no proper PROXY header",
            Refusal::Proxy => "no proxy whose header is believed",
            Refusal::Loop => "it may come from a service that answers too",
            Refusal::Broadcast => "broadcast and multicast are not answered",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.meaning())
    }
}

impl From<Refusal> for reactor::Refusal {
    fn from(refusal: Refusal) -> Self {
        reactor::Refusal(refusal.meaning())
    }
}

/// How many were refused, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals([u64; Refusal::ALL.len()]);

impl Refusals {
    /// How many were refused for this reason.
    pub fn of(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize]
    }

    /// How many were refused.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    fn count(&mut self, refusal: Refusal) -> Refusal {
        self.0[refusal as usize] += 1;
        refusal
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = Refusal::ALL.into_iter().filter(|&refusal| self.of(refusal) > 0);
        let counted: Vec<_> = counted.map(|refusal| format!("{} {}", self.of(refusal), refusal.name())).collect();
        f.write_str(&counted.join(", "))
    }
}

/// Those admitted within the last second: no second, wherever it begins, has more of them than the limit.
#[derive(Debug, Default)]
struct LastSecond {
    /// When, and how many at once: a turn of the loop has one time.
    times: VecDeque<(Instant, u32)>,
    count: u32,
}

impl LastSecond {
    fn admits(&mut self, now: Instant, limit: u32) -> bool {
        while let Some(&(time, count)) = self.times.front()
            && now.saturating_duration_since(time) >= SECOND
        {
            self.times.pop_front();
            self.count -= count;
        }
        if self.count >= limit {
            return false;
        }
        self.count += 1;
        match self.times.back_mut() {
            Some((time, count)) if *time == now => *count += 1,
            _ => self.times.push_back((now, 1)),
        }
        true
    }
}

/// Admits connections, and counts those that are open by their source.
pub(super) struct Gate {
    options: AccessOptions,
    accepted: LastSecond,
    /// Connections of each source, where they are limited.
    present: HashMap<IpAddr, usize>,
    pub refusals: Refusals,
}

impl Gate {
    pub fn new(options: &AccessOptions) -> Self {
        Gate {
            options: options.canonical(),
            accepted: LastSecond::default(),
            present: HashMap::new(),
            refusals: Refusals::default(),
        }
    }

    /// Whether admitted connections are counted, so that [`leave`](Gate::leave) must be called when they close.
    pub fn counts(&self) -> bool {
        self.options.max_per_source.is_some()
    }

    /// Whether this one is admitted at `now`, and counts it if so.
    pub fn enter(&mut self, origin: Origin, now: Instant) -> Result<(), Refusal> {
        let judged = self.judge(origin).and_then(|()| self.take_turn(now));
        judged.map_err(|refusal| self.refusals.count(refusal))?;
        self.count(origin);
        Ok(())
    }

    /// Whether a proxy may connect at `now`. Whether the client that it speaks for is admitted is asked later:
    /// [`admit`](Gate::admit).
    pub fn enter_proxy(&mut self, origin: Origin, now: Instant) -> Result<(), Refusal> {
        let trusted = &self.options.proxy_from;
        // A socket file's permissions say who may connect to it.
        let believed = trusted.is_empty() || origin.ip().is_none_or(|ip| contain(trusted, ip));
        let judged = if believed { self.take_turn(now) } else { Err(Refusal::Proxy) };
        judged.map_err(|refusal| self.refusals.count(refusal))
    }

    /// Whether the client that a proxy speaks for is admitted, and counts it if so.
    pub fn admit(&mut self, origin: Origin) -> Result<(), Refusal> {
        self.judge(origin).map_err(|refusal| self.refusals.count(refusal))?;
        self.count(origin);
        Ok(())
    }

    /// One that was let in has gone.
    pub fn leave(&mut self, origin: Origin) {
        let Some(source) = origin.ip().map(|ip| self.options.source(ip)) else { return };
        if let Some(present) = self.present.get_mut(&source) {
            *present -= 1;
            if *present == 0 {
                self.present.remove(&source);
            }
        }
    }

    /// Counts one that was refused for what it sent.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refusals.count(refusal);
    }

    fn judge(&self, origin: Origin) -> Result<(), Refusal> {
        let Some(ip) = origin.ip() else { return Ok(()) };
        self.options.judge(ip)?;
        let present = self.present.get(&self.options.source(ip)).copied().unwrap_or(0);
        if self.options.max_per_source.is_some_and(|most| present >= most) {
            return Err(Refusal::PerSource);
        }
        Ok(())
    }

    fn take_turn(&mut self, now: Instant) -> Result<(), Refusal> {
        match self.options.accept_rate {
            Some(limit) if !self.accepted.admits(now, limit.get()) => Err(Refusal::Rate),
            _ => Ok(()),
        }
    }

    fn count(&mut self, origin: Origin) {
        if let Some(ip) = origin.ip().filter(|_| self.counts()) {
            *self.present.entry(self.options.source(ip)).or_default() += 1;
        }
    }
}

/// A datagram, as far as it decides whether it is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub from: SocketAddr,
    /// It was sent to a broadcast or multicast address.
    pub to_many: bool,
    pub bytes: &'a [u8],
}

/// Decides which datagrams are answered.
pub(super) struct DatagramGate {
    options: AccessOptions,
    /// The ports that this server listens on.
    own_ports: Vec<u16>,
    began: Instant,
    rate: Option<Rates>,
    loops: Loops,
    pub refusals: Refusals,
}

impl DatagramGate {
    pub fn new(options: &AccessOptions) -> Self {
        DatagramGate {
            options: options.canonical(),
            own_ports: Vec::new(),
            began: Instant::now(),
            rate: options.datagram_rate.map(|limit| Rates::new(limit.get())),
            loops: Loops::default(),
            refusals: Refusals::default(),
        }
    }

    /// The ports that this server's datagrams come from.
    pub fn set_own_ports(&mut self, own_ports: Vec<u16>) {
        self.own_ports = own_ports;
    }

    /// Whether a datagram that came at `now` is to be answered.
    pub fn admit(&mut self, question: &Question<'_>, now: Instant) -> Result<(), Refusal> {
        self.judge(question, now).map_err(|refusal| self.refusals.count(refusal))
    }

    fn judge(&mut self, question: &Question<'_>, now: Instant) -> Result<(), Refusal> {
        let from = question.from;
        let ip = from.ip().to_canonical();
        if question.to_many || is_group(ip) || ip.is_unspecified() {
            return Err(Refusal::Broadcast);
        }
        // Of our own ports too when they are another machine's: it may well run the same service there.
        if from.port() < FIRST_SAFE_PORT || self.own_ports.contains(&from.port()) {
            return Err(Refusal::Loop);
        }
        self.options.judge(ip)?;
        if self.loops.is_one(from, question.bytes, now.saturating_duration_since(self.began)) {
            return Err(Refusal::Loop);
        }
        let source = self.options.source(ip);
        self.rate.as_mut().is_none_or(|rate| rate.admits(source, now)).then_some(()).ok_or(Refusal::Rate)
    }
}

/// A source of datagrams, and what was answered to it.
#[derive(Debug)]
struct Source {
    first: Instant,
    last: Instant,
    answered: LastSecond,
}

impl Source {
    fn new(now: Instant) -> Self {
        Source { first: now, last: now, answered: LastSecond::default() }
    }

    fn is_remembered(&self, now: Instant) -> bool {
        let known = (self.last - self.first).clamp(REMEMBERED.0, REMEMBERED.1);
        now.saturating_duration_since(self.last) <= known
    }
}

/// The rates of all sources of datagrams. A forged source costs its sender nothing, so their number is bounded: when
/// there is no more room, new ones share a rate, and known ones keep theirs.
struct Rates {
    limit: u32,
    sources: HashMap<IpAddr, Source>,
    newcomers: LastSecond,
    forgot: Instant,
}

impl Rates {
    fn new(limit: u32) -> Self {
        Rates { limit, sources: HashMap::new(), newcomers: LastSecond::default(), forgot: Instant::now() }
    }

    fn admits(&mut self, source: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.forgot) >= SECOND {
            self.forgot = now;
            self.sources.retain(|_, source| source.is_remembered(now));
        }
        let found = if self.sources.len() < MAX_SOURCES {
            self.sources.entry(source).or_insert_with(|| Source::new(now))
        } else if let Some(known) = self.sources.get_mut(&source) {
            known
        } else {
            return self.newcomers.admits(now, self.limit);
        };
        found.last = now;
        found.answered.admits(now, self.limit)
    }
}

/// Conversations that have no end. Another service that sends back what it is sent looks like a client that sends the same
/// datagram again and again, each as soon as it has its answer; two of them keep one datagram going without end, which anybody
/// can give them with a forged sender. So one that has come from the same source many times, for a long time, without a break, is
/// left unanswered for a moment, in which all copies that go round come by: a client has lost datagrams, as may happen,
/// and the loops have ended.
///
/// What is remembered is in a table of a fixed size, by a hash, and a datagram costs one look into it. One that has come
/// once only leaves its slot to the next but one, so that a busy client whose datagrams all differ does not keep a loop
/// from being seen.
#[derive(Default)]
struct Loops {
    slots: Vec<Repeated>,
}

/// A datagram that comes again.
#[derive(Debug, Clone, Copy, Default)]
struct Repeated {
    hash: u64,
    /// When, in milliseconds.
    first: u32,
    last: u32,
    count: u32,
    challenged: bool,
    /// It is left unanswered for a moment that began with the first.
    muted: bool,
}

/// Slots of the table: more than datagrams fit into a socket's buffer at the usual size, which is all that can go round (277
/// in 208 KiB, where the smallest is charged 768 bytes; socket(7), `rmem_default`). Each datagram looks at one of them, so
/// the table has to stay in the processor's nearest caches: with four times as many, that look was a third of all that an
/// answer takes outside the kernel.
const LOOP_SLOTS: usize = 1024;

/// A datagram that comes again after more than this has not come without a break: a loop that slow does no harm. And so
/// long it is left unanswered, so that all loops that are faster end.
const LOOP_BREAK: u32 = 250;

/// How many times, and for how many milliseconds, the same datagram is answered without a break.
const LOOP_COUNT: u32 = 1000;
const LOOP_TIME: u32 = 2000;

impl Loops {
    /// Whether a datagram is to be left unanswered, so that a loop ends.
    fn is_one(&mut self, from: SocketAddr, bytes: &[u8], now: Duration) -> bool {
        if self.slots.is_empty() {
            self.slots = vec![Repeated::default(); LOOP_SLOTS];
        }
        let (hash, now) = (hash(from, bytes), now.as_millis() as u32);
        // The high bits are the best mixed.
        let slot = &mut self.slots[(hash >> (u64::BITS - LOOP_SLOTS.ilog2())) as usize];
        let goes_on = now.wrapping_sub(slot.last) <= LOOP_BREAK && slot.count > 0;
        if goes_on && slot.hash == hash {
            slot.last = now;
            slot.count = slot.count.saturating_add(1);
            let age = now.wrapping_sub(slot.first);
            slot.muted &= age < LOOP_BREAK;
            if slot.muted || (slot.count > LOOP_COUNT && age >= LOOP_TIME) {
                if !slot.muted {
                    *slot = Repeated { hash, first: now, last: now, count: 1, challenged: false, muted: true };
                }
                return true;
            }
        } else if goes_on && (slot.count > 1 || !slot.challenged) {
            slot.challenged = true;
        } else {
            *slot = Repeated { hash, first: now, last: now, count: 1, challenged: false, muted: false };
        }
        false
    }
}

/// Tells datagrams apart by where they come from, their length, and both their ends: those that are numbered anywhere
/// near one differ.
fn hash(from: SocketAddr, bytes: &[u8]) -> u64 {
    const ENDS: usize = 64;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let ip = match from.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let mut hash = [ip as u64, (ip >> 64) as u64, from.port().into(), bytes.len() as u64].into_iter().fold(0, mix);
    for end in [&bytes[..bytes.len().min(ENDS)], &bytes[bytes.len().saturating_sub(ENDS)..]] {
        let mut words = end.chunks_exact(8);
        hash = words.by_ref().fold(hash, |hash, word| mix(hash, word.try_into().map_or(0, u64::from_le_bytes)));
        hash = words.remainder().iter().fold(hash, |hash, &byte| mix(hash, byte.into()));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(allow: &[&str], deny: &[&str]) -> AccessOptions {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        AccessOptions { allow: networks(allow), deny: networks(deny), ..AccessOptions::default() }
    }

    fn admit(gate: &mut Gate, ip: &str) -> Result<(), Refusal> {
        gate.enter(from(ip), Instant::now())
    }

    fn from(ip: &str) -> Origin {
        Origin::Ip(SocketAddr::new(ip.parse().unwrap(), 40_000))
    }

    #[test]
    fn networks_are_allowed_and_denied_and_denial_wins() {
        let mut gate = Gate::new(&options(&["10.0.0.0/8", "fd00::/8"], &["10.6.0.0/16"]));
        assert_eq!(admit(&mut gate, "10.1.2.3"), Ok(()));
        assert_eq!(admit(&mut gate, "::ffff:10.1.2.3"), Ok(()), "an IPv4 address, as a dual socket tells it");
        assert_eq!(admit(&mut gate, "fd00::1"), Ok(()));
        assert_eq!(admit(&mut gate, "10.6.0.1"), Err(Refusal::Denied));
        assert_eq!(admit(&mut gate, "192.0.2.1"), Err(Refusal::NotAllowed));
        assert_eq!(admit(&mut gate, "fe80::1"), Err(Refusal::NotAllowed));
        assert_eq!(gate.enter(Origin::Unix, Instant::now()), Ok(()), "who has no address is in no network");
        assert_eq!(gate.refusals.to_string(), "2 not_allowed, 1 denied");
        assert_eq!(admit(&mut Gate::new(&options(&[], &["::/0"])), "192.0.2.1"), Ok(()));
    }

    #[test]
    fn mapped_networks_are_the_ipv4_ones() {
        for (network, inside, outside) in [
            ("::ffff:127.0.0.1/128", "127.0.0.1", "127.0.0.2"),
            ("::ffff:10.0.0.0/104", "10.200.0.1", "11.0.0.1"),
            ("::ffff:0:0/96", "192.0.2.1", "2001:db8::1"),
        ] {
            for (allow, deny) in [(vec![network], vec![]), (vec![], vec![network])] {
                let mut gate = Gate::new(&options(&allow, &deny));
                let mut datagrams = DatagramGate::new(&options(&allow, &deny));
                for (ip, is_in) in [(inside, true), (outside, false)] {
                    let expected = is_in != allow.is_empty();
                    assert_eq!(admit(&mut gate, ip).is_ok(), expected, "{ip} {network}");
                    let question = Question { from: (ip.parse::<IpAddr>().unwrap(), 5000).into(), ..plain() };
                    assert_eq!(datagrams.admit(&question, Instant::now()).is_ok(), expected, "{ip} {network}");
                }
            }
            let trusted = AccessOptions { proxy_from: vec![network.parse().unwrap()], ..options(&[], &[]) };
            let mut gate = Gate::new(&trusted);
            assert_eq!(gate.enter_proxy(from(inside), Instant::now()), Ok(()));
            assert_eq!(gate.enter_proxy(from(outside), Instant::now()), Err(Refusal::Proxy));
            assert_eq!(gate.enter_proxy(Origin::Unix, Instant::now()), Ok(()));
        }
    }

    #[test]
    fn a_source_has_so_many_connections_at_once() {
        let mut gate = Gate::new(&AccessOptions { max_per_source: Some(2), ..options(&[], &[]) });
        for _ in 0..100 {
            assert_eq!(admit(&mut gate, "192.0.2.1"), Ok(()));
            assert_eq!(admit(&mut gate, "192.0.2.1"), Ok(()));
            assert_eq!(admit(&mut gate, "192.0.2.1"), Err(Refusal::PerSource));
            assert_eq!(admit(&mut gate, "192.0.2.2"), Ok(()));
            gate.leave(from("192.0.2.1"));
            assert_eq!(admit(&mut gate, "192.0.2.1"), Ok(()));
            gate.leave(from("192.0.2.1"));
            gate.leave(from("192.0.2.1"));
            gate.leave(from("192.0.2.2"));
        }
        assert!(gate.present.is_empty(), "nothing is remembered of who has gone");
    }

    #[test]
    fn ipv6_sources_are_networks_ipv4_sources_are_addresses() {
        let gate = |ipv6_prefix| {
            Gate::new(&AccessOptions { max_per_source: Some(1), ipv6_prefix, ..AccessOptions::default() })
        };
        let mut by_64 = gate(64);
        assert_eq!(admit(&mut by_64, "2001:db8::1"), Ok(()));
        assert_eq!(admit(&mut by_64, "2001:db8::ffff:2"), Err(Refusal::PerSource));
        assert_eq!(admit(&mut by_64, "2001:db8:0:1::1"), Ok(()));
        assert_eq!(admit(&mut by_64, "::ffff:192.0.2.1"), Ok(()));
        assert_eq!(admit(&mut by_64, "::ffff:192.0.2.2"), Ok(()));
        assert_eq!(admit(&mut by_64, "192.0.2.2"), Err(Refusal::PerSource));
        by_64.leave(from("2001:db8::1"));
        assert_eq!(admit(&mut by_64, "2001:db8::ffff:2"), Ok(()));
        for (prefix, together) in [(128, false), (48, true), (0, true)] {
            let mut gate = gate(prefix);
            assert_eq!(admit(&mut gate, "2001:db8::1"), Ok(()));
            assert_eq!(admit(&mut gate, "2001:db8:0:1::2").is_err(), together, "{prefix}");
        }
    }

    #[test]
    fn those_refused_take_nothing_from_the_rate() {
        let access =
            AccessOptions { accept_rate: NonZeroU32::new(2), max_per_source: Some(1), ..options(&[], &["10.0.0.0/8"]) };
        let (mut gate, now) = (Gate::new(&access), Instant::now());
        let mut come = |ip| gate.enter(from(ip), now);
        assert_eq!((come("10.0.0.1"), come("10.0.0.2")), (Err(Refusal::Denied), Err(Refusal::Denied)));
        assert_eq!((come("192.0.2.1"), come("192.0.2.1")), (Ok(()), Err(Refusal::PerSource)));
        assert_eq!((come("192.0.2.2"), come("192.0.2.3")), (Ok(()), Err(Refusal::Rate)));
        gate.leave(from("192.0.2.1"));
        assert_eq!(gate.enter(from("192.0.2.3"), now + SECOND), Ok(()), "those refused are not counted as present");
    }

    fn plain() -> Question<'static> {
        Question { from: "192.0.2.1:5000".parse().unwrap(), to_many: false, bytes: b"hello" }
    }

    #[test]
    fn datagrams_that_might_be_answers_are_not_answered() {
        let mut gate = DatagramGate::new(&options(&[], &["192.0.2.9/32"]));
        gate.set_own_ports(vec![7777]);
        let now = Instant::now();
        let mut judge = |from: &str| gate.admit(&Question { from: from.parse().unwrap(), ..plain() }, now);
        for port in [0, 7, 19, 53, 123, 1023, 7777] {
            assert_eq!(judge(&format!("192.0.2.1:{port}")), Err(Refusal::Loop), "{port}");
        }
        assert_eq!(judge("192.0.2.1:1024"), Ok(()));
        assert_eq!(judge("192.0.2.9:1024"), Err(Refusal::Denied));
        for many in
            ["224.0.0.1:5000", "255.255.255.255:5000", "0.0.0.0:5000", "[ff02::1]:5000", "[::ffff:224.0.0.1]:5000"]
        {
            assert_eq!(judge(many), Err(Refusal::Broadcast), "{many}");
        }
        assert_eq!(gate.admit(&Question { to_many: true, ..plain() }, now), Err(Refusal::Broadcast));
    }

    #[test]
    fn flood_of_forged_sources_spares_known_ones() {
        let access = AccessOptions { datagram_rate: NonZeroU32::new(3), ..options(&[], &[]) };
        let mut gate = DatagramGate::new(&access);
        let begin = gate.began;
        let question = |number: u32| Question { from: (IpAddr::V4(number.into()), 5000).into(), ..plain() };
        let known = 1 << 24;
        let mut flooded = 0;
        for second in 0..10 {
            let now = begin + Duration::from_secs(second);
            assert_eq!((0..9).filter(|_| gate.admit(&question(known), now).is_ok()).count(), 3, "second {second}");
            if second >= 5 {
                for forged in 0..70_000 {
                    let answered = gate.admit(&question((2 << 24) + second as u32 * 70_000 + forged), now).is_ok();
                    flooded += usize::from(answered);
                }
                let sources = gate.rate.as_ref().unwrap().sources.len();
                assert!(sources <= MAX_SOURCES, "{sources}");
            }
        }
        assert!(flooded > 0, "newcomers are not shut out altogether");
        let later = begin + Duration::from_secs(200);
        assert_eq!(gate.admit(&question(7 << 24), later), Ok(()));
        assert_eq!(gate.rate.as_ref().unwrap().sources.len(), 1, "who has gone is forgotten");
    }

    /// Answers as two servers of this kind do that were made to talk to each other; returns how many there were and
    /// for how long.
    fn bounce(datagrams: &[&[u8]], step: Duration, noise: usize) -> (u32, Duration) {
        let ends = ["192.0.2.1:5001", "192.0.2.1:5002"].map(|end| end.parse::<SocketAddr>().unwrap());
        let mut gates = [5001, 5002].map(|port| {
            let mut gate = DatagramGate::new(&AccessOptions::default());
            gate.set_own_ports(vec![port]);
            gate
        });
        let mut now = Instant::now();
        let began = now;
        let mut under_way: VecDeque<(usize, &[u8])> = datagrams.iter().map(|&bytes| (0, bytes)).collect();
        let (mut answers, mut number) = (0, 0u64);
        while let Some((to, bytes)) = under_way.pop_front() {
            now += step;
            for _ in 0..noise {
                number += 1;
                let bytes = [&number.to_be_bytes()[..], &[7; 100]].concat();
                let question = Question { from: "192.0.2.7:5000".parse().unwrap(), to_many: false, bytes: &bytes };
                assert_eq!(gates[to].admit(&question, now), Ok(()), "a client whose datagrams differ is answered");
            }
            if gates[to].admit(&Question { from: ends[1 - to], to_many: false, bytes }, now).is_ok() {
                under_way.push_back((1 - to, bytes));
                answers += 1;
            }
            assert!(now - began < Duration::from_secs(600), "it goes on for ever");
        }
        (answers, now - began)
    }

    #[test]
    fn two_servers_answering_each_other_come_to_rest() {
        let micros = Duration::from_micros;
        let (answers, time) = bounce(&[b"forged"], micros(40), 0);
        assert!(answers < 100_000 && time < Duration::from_secs(3), "{answers} {time:?}");
        let (_, time) = bounce(&[b"forged"], micros(40), 4);
        assert!(time < Duration::from_secs(3), "beside a busy client {time:?}");
        let many: Vec<_> = (0..300u32).map(u32::to_le_bytes).collect();
        let many: Vec<_> = many.iter().map(|bytes| &bytes[..]).collect();
        let (_, time) = bounce(&many, micros(1), 0);
        assert!(time < Duration::from_secs(10), "many at once {time:?}");
        let (_, time) = bounce(&[b"same", b"same", b"", b""], micros(40), 0);
        assert!(time < Duration::from_secs(10), "{time:?}");
        let (_, time) = bounce(&[&b"same"[..]; 200], micros(1), 0);
        assert!(time < Duration::from_secs(5), "many of the same {time:?}");
        let (answers, _) = bounce(&[b"far away"], Duration::from_millis(10), 0);
        assert!(answers < 2500, "{answers}");
    }

    #[test]
    fn who_repeats_itself_slowly_is_always_answered() {
        let mut gate = DatagramGate::new(&AccessOptions::default());
        let begin = gate.began;
        for second in 0..100_000 {
            assert_eq!(gate.admit(&plain(), begin + Duration::from_secs(second)), Ok(()));
        }
        // And in a burst, as a benchmark that waits for each answer makes it.
        let begin = begin + Duration::from_secs(200_000);
        for number in 0..50_000 {
            assert_eq!(gate.admit(&plain(), begin + Duration::from_micros(20) * number), Ok(()));
        }
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_the_rate(gaps in prop::collection::vec(0u64..400, 1..300), limit in 1u32..20) {
            let rate = NonZeroU32::new(limit);
            let mut gate = Gate::new(&AccessOptions { accept_rate: rate, ..AccessOptions::default() });
            let mut datagrams = DatagramGate::new(&AccessOptions { datagram_rate: rate, ..AccessOptions::default() });
            let mut now = datagrams.began;
            let (mut accepted, mut answered) = (Vec::new(), Vec::new());
            for (number, &gap) in gaps.iter().enumerate() {
                now += Duration::from_millis(gap);
                let recent = accepted.iter().filter(|&&time| now - time < SECOND).count();
                let came = gate.enter(Origin::Unix, now).is_ok();
                prop_assert_eq!(came, recent < limit as usize, "refused exactly when the second is full");
                accepted.extend(came.then_some(now));
                let recent = answered.iter().filter(|&&time| now - time < SECOND).count();
                let bytes = &number.to_be_bytes();
                let came = datagrams.admit(&Question { bytes, ..plain() }, now).is_ok();
                prop_assert_eq!(came, recent < limit as usize);
                answered.extend(came.then_some(now));
            }
            for times in [accepted, answered] {
                for (at, &first) in times.iter().enumerate() {
                    let count = times[at..].iter().take_while(|&&time| time - first < SECOND).count();
                    prop_assert!(count <= limit as usize);
                }
            }
        }
    }
}
