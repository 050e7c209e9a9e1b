//! Who may come in.
//!
//! A [`Gate`] judges connections: by the network they come from, by how many their source has already, and by how many
//! come in a second. A [`DatagramGate`] judges datagrams, which have no connections to count, by network and by a rate
//! for each source. Each refusal has a reason, and is counted by it.
//!
//! This module knows addresses. It does not know sockets, nor how somebody is turned away.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use ipnet::IpNet;

use crate::reactor::socket::Origin;

/// Sources of datagrams that are remembered. Those whose bucket is full again are forgotten once a second; when there
/// are more than this in a second, nobody is answered until then, for a forged source costs its sender nothing.
const SOURCES: usize = 65_536;

/// How often sources are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// Datagrams from a port below this are not answered: echo, chargen, DNS, NTP and other services that answer whatever
/// they receive live there, and two such services that are made to talk to each other never stop (CVE-2024-2169).
const FIRST_SAFE_PORT: u16 = 1024;

/// Who may come in. By default everybody.
#[derive(Debug, Clone, Default)]
pub struct AccessOptions {
    /// Only those in one of these networks; empty: everybody.
    pub allow: Vec<IpNet>,
    /// Nobody in one of these networks, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// Connections at once from one address.
    pub max_per_source: Option<usize>,
    /// Connections accepted per second, and as many at once.
    pub accept_rate: Option<NonZeroU32>,
    /// Datagrams answered per second and source address, and as many at once.
    pub datagram_rate: Option<NonZeroU32>,
    /// Connections begin with a header that tells whom a proxy speaks for.
    pub proxy_protocol: bool,
}

impl AccessOptions {
    fn judge(&self, ip: IpAddr) -> Result<(), Refusal> {
        let in_one_of = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&ip));
        if in_one_of(&self.deny) {
            return Err(Refusal::Denied);
        }
        if !self.allow.is_empty() && !in_one_of(&self.allow) {
            return Err(Refusal::NotAllowed);
        }
        Ok(())
    }
}

/// Why somebody was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is in none of the allowed networks.
    NotAllowed,
    /// It is in a denied network.
    Denied,
    /// Its address has as many connections as it may have.
    PerSource,
    /// More came than may come in a second.
    Rate,
    /// The PROXY header is malformed, or did not come.
    Header,
    /// A datagram's source port belongs to a service that would answer the answer.
    Loop,
}

impl Refusal {
    /// All reasons.
    pub const ALL: [Refusal; 6] =
        [Refusal::NotAllowed, Refusal::Denied, Refusal::PerSource, Refusal::Rate, Refusal::Header, Refusal::Loop];

    /// A word for it, as in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::NotAllowed => "not_allowed",
            Refusal::Denied => "denied",
            Refusal::PerSource => "per_source",
            Refusal::Rate => "rate",
            Refusal::Header => "header",
            Refusal::Loop => "loop",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NotAllowed => "not in an allowed network",
            Refusal::Denied => "in a denied network",
            Refusal::PerSource => "its address has as many connections as it may have",
            Refusal::Rate => "more come than may in a second",
            Refusal::Header => "no proper PROXY header",
            Refusal::Loop => "its port may belong to a service that answers too",
        })
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

/// The time as the loop last read it, in nanoseconds since the beginning, so that limits need no clock of their own.
#[derive(Debug, Clone)]
struct LoopClock {
    began: Instant,
    now: Arc<AtomicU64>,
}

impl LoopClock {
    fn new() -> Self {
        LoopClock { began: Instant::now(), now: Arc::default() }
    }

    fn set(&self, now: Instant) {
        let nanos = now.saturating_duration_since(self.began).as_nanos();
        self.now.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock for LoopClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.now.load(Ordering::Relaxed).into()
    }
}

/// Lets connections in, and keeps count of who is.
pub(super) struct Gate {
    options: AccessOptions,
    clock: LoopClock,
    rate: Option<RateLimiter<NotKeyed, InMemoryState, LoopClock, NoOpMiddleware<Nanos>>>,
    /// Connections of each address, where they are limited.
    present: HashMap<IpAddr, usize>,
    pub refusals: Refusals,
}

impl Gate {
    pub fn new(options: &AccessOptions) -> Self {
        let clock = LoopClock::new();
        let rate =
            options.accept_rate.map(|rate| RateLimiter::direct_with_clock(Quota::per_second(rate), clock.clone()));
        Gate { options: options.clone(), clock, rate, present: HashMap::new(), refusals: Refusals::default() }
    }

    /// Whether those who are let in are counted, and [`leave`](Gate::leave) has to be told when they go.
    pub fn counts(&self) -> bool {
        self.options.max_per_source.is_some()
    }

    /// Whether another connection may come at `now`, whoever it is.
    pub fn arrive(&mut self, now: Instant) -> Result<(), Refusal> {
        let Some(rate) = &self.rate else { return Ok(()) };
        self.clock.set(now);
        rate.check().map_err(|_| self.refusals.count(Refusal::Rate))
    }

    /// Whether this one may come in, and counts it if so.
    pub fn admit(&mut self, origin: Origin) -> Result<(), Refusal> {
        let Some(ip) = origin.ip() else { return Ok(()) };
        self.options.judge(ip).map_err(|refusal| self.refusals.count(refusal))?;
        if let Some(most) = self.options.max_per_source {
            let present = self.present.entry(ip).or_default();
            if *present >= most {
                return Err(self.refusals.count(Refusal::PerSource));
            }
            *present += 1;
        }
        Ok(())
    }

    /// One that was let in has gone.
    pub fn leave(&mut self, origin: Origin) {
        let Some(ip) = origin.ip() else { return };
        if let Some(present) = self.present.get_mut(&ip) {
            *present -= 1;
            if *present == 0 {
                self.present.remove(&ip);
            }
        }
    }

    /// Counts one that was refused for what it sent.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refusals.count(refusal);
    }
}

/// Decides which datagrams are answered.
pub(super) struct DatagramGate {
    options: AccessOptions,
    /// The ports that this server listens on.
    own_ports: Vec<u16>,
    clock: LoopClock,
    rate: Option<RateLimiter<IpAddr, HashMapStateStore<IpAddr>, LoopClock, NoOpMiddleware<Nanos>>>,
    forgot: Instant,
    pub refusals: Refusals,
}

impl DatagramGate {
    /// `own_ports` are those that this server's datagrams come from.
    pub fn new(options: &AccessOptions, own_ports: Vec<u16>) -> Self {
        let clock = LoopClock::new();
        let rate =
            options.datagram_rate.map(|rate| RateLimiter::hashmap_with_clock(Quota::per_second(rate), clock.clone()));
        let forgot = Instant::now();
        DatagramGate { options: options.clone(), own_ports, clock, rate, forgot, refusals: Refusals::default() }
    }

    /// Whether a datagram that came at `now` is to be answered.
    pub fn admit(&mut self, from: SocketAddr, now: Instant) -> Result<(), Refusal> {
        self.judge(from, now).map_err(|refusal| self.refusals.count(refusal))
    }

    fn judge(&mut self, from: SocketAddr, now: Instant) -> Result<(), Refusal> {
        // Of our own ports too when they are another machine's: it may well run the same service there.
        if from.port() < FIRST_SAFE_PORT || self.own_ports.contains(&from.port()) {
            return Err(Refusal::Loop);
        }
        let ip = from.ip().to_canonical();
        self.options.judge(ip)?;
        let Some(rate) = &self.rate else { return Ok(()) };
        self.clock.set(now);
        if now.saturating_duration_since(self.forgot) >= FORGET_EVERY {
            self.forgot = now;
            rate.retain_recent();
        }
        if rate.len() >= SOURCES {
            return Err(Refusal::Rate);
        }
        rate.check_key(&ip).map_err(|_| Refusal::Rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(allow: &[&str], deny: &[&str]) -> AccessOptions {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        AccessOptions { allow: networks(allow), deny: networks(deny), ..AccessOptions::default() }
    }

    fn from(ip: &str) -> Origin {
        Origin::Ip(SocketAddr::new(ip.parse().unwrap(), 40_000))
    }

    #[test]
    fn networks_are_allowed_and_denied_and_denial_wins() {
        let mut gate = Gate::new(&options(&["10.0.0.0/8", "fd00::/8"], &["10.6.0.0/16"]));
        assert_eq!(gate.admit(from("10.1.2.3")), Ok(()));
        assert_eq!(gate.admit(from("::ffff:10.1.2.3")), Ok(()), "an IPv4 address, as a dual socket tells it");
        assert_eq!(gate.admit(from("fd00::1")), Ok(()));
        assert_eq!(gate.admit(from("10.6.0.1")), Err(Refusal::Denied));
        assert_eq!(gate.admit(from("192.0.2.1")), Err(Refusal::NotAllowed));
        assert_eq!(gate.admit(from("fe80::1")), Err(Refusal::NotAllowed));
        assert_eq!(gate.admit(Origin::Unix), Ok(()), "who has no address is in no network");
        assert_eq!(gate.refusals.to_string(), "2 not_allowed, 1 denied");
        assert_eq!(Gate::new(&options(&[], &["::/0"])).admit(from("192.0.2.1")), Ok(()));
    }

    #[test]
    fn a_source_has_so_many_connections_at_once() {
        let mut gate = Gate::new(&AccessOptions { max_per_source: Some(2), ..options(&[], &[]) });
        for _ in 0..100 {
            assert_eq!(gate.admit(from("192.0.2.1")), Ok(()));
            assert_eq!(gate.admit(from("192.0.2.1")), Ok(()));
            assert_eq!(gate.admit(from("192.0.2.1")), Err(Refusal::PerSource));
            assert_eq!(gate.admit(from("192.0.2.2")), Ok(()));
            gate.leave(from("192.0.2.1"));
            assert_eq!(gate.admit(from("192.0.2.1")), Ok(()));
            gate.leave(from("192.0.2.1"));
            gate.leave(from("192.0.2.1"));
            gate.leave(from("192.0.2.2"));
        }
        assert!(gate.present.is_empty(), "nothing is remembered of who has gone");
    }

    #[test]
    fn so_many_come_in_a_second() {
        let mut gate = Gate::new(&AccessOptions { accept_rate: NonZeroU32::new(10), ..options(&[], &[]) });
        let begin = Instant::now() + Duration::from_secs(1);
        let mut come = |millis| gate.arrive(begin + Duration::from_millis(millis)).is_ok();
        assert_eq!((0..100).filter(|_| come(0)).count(), 10);
        assert_eq!((0..100).filter(|_| come(250)).count(), 2);
        assert_eq!((0..100).filter(|_| come(60_000)).count(), 10, "no more than a second's worth is saved up");
        assert_eq!(gate.refusals.of(Refusal::Rate), 278);
    }

    #[test]
    fn datagrams_that_might_be_answers_are_not_answered() {
        let mut gate = DatagramGate::new(&options(&[], &["192.0.2.9/32"]), vec![7777]);
        let now = Instant::now();
        let mut judge = |from: &str| gate.admit(from.parse().unwrap(), now);
        for port in [0, 7, 19, 53, 123, 1023, 7777] {
            assert_eq!(judge(&format!("192.0.2.1:{port}")), Err(Refusal::Loop), "{port}");
        }
        assert_eq!(judge("192.0.2.1:1024"), Ok(()));
        assert_eq!(judge("192.0.2.9:1024"), Err(Refusal::Denied));
    }

    #[test]
    fn each_source_of_datagrams_has_a_bucket_and_they_are_bounded() {
        let mut gate =
            DatagramGate::new(&AccessOptions { datagram_rate: NonZeroU32::new(3), ..options(&[], &[]) }, vec![]);
        let begin = Instant::now();
        let source = |number: u32| SocketAddr::new(IpAddr::V4(number.into()), 5000);
        assert_eq!((0..9).filter(|_| gate.admit(source(1), begin).is_ok()).count(), 3);
        assert_eq!((0..9).filter(|_| gate.admit(source(2), begin).is_ok()).count(), 3);
        let admitted = (0..100_000).filter(|&number| gate.admit(source(number), begin).is_ok()).count();
        assert_eq!(admitted, SOURCES - 2);
        let later = begin + Duration::from_secs(2);
        assert_eq!(gate.admit(source(1), later), Ok(()));
        assert_eq!(gate.rate.as_ref().unwrap().len(), 1);
    }
}
