//! A connection to the first of several addresses that answers (RFC 8305, Happy Eyeballs).
//!
//! A name often has addresses of both families, of which one leads nowhere; a client that tries them one after the other
//! waits minutes. So the next one is tried when the last has failed, or has not answered within 250 ms, the families in
//! turn; the first that is established wins, and the others are dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use log::debug;
use mio::Token;
use rustix::io::Errno;

use crate::reactor::Stream;
use crate::reactor::address::{Address, Endpoint};

/// How long an attempt is alone before the next one begins (RFC 8305, 5: the Connection Attempt Delay).
const STAGGER: Duration = Duration::from_millis(250);

/// When a Unix socket whose listener's backlog is full is tried again. TCP's kernel would do that for us.
const RETRY: Duration = Duration::from_millis(20);

/// The attempts to connect.
pub(super) struct Race<S> {
    waiting: VecDeque<Endpoint>,
    /// Those that are under way; the token of an attempt is its number.
    running: Vec<(Endpoint, S)>,
    begun: usize,
    next_at: Instant,
    failures: Failures,
    deadline: Instant,
    timeout: Duration,
}

impl<S: Stream> Race<S> {
    /// Attempts at all of `endpoints` that end `timeout` after `began`, when the name began to be looked up.
    pub fn new(endpoints: Vec<Endpoint>, began: Instant, timeout: Duration) -> Race<S> {
        Race {
            waiting: in_turn(endpoints),
            running: Vec::new(),
            begun: 0,
            next_at: began,
            failures: Failures::default(),
            deadline: began + timeout,
            timeout,
        }
    }

    /// Makes all steps that can be made now; `dial` begins an attempt, registered under a token. Returns the winner, or
    /// why there is none; `None` while that is open.
    pub fn turn(
        &mut self,
        now: Instant,
        mut dial: impl FnMut(&Endpoint, Token) -> io::Result<S>,
    ) -> Option<Result<(Endpoint, S), Failures>> {
        let mut number = 0;
        while number < self.running.len() {
            match self.running[number].1.established() {
                Ok(true) => return Some(Ok(self.running.swap_remove(number))),
                Ok(false) => number += 1,
                Err(error) => {
                    debug!("{}: {error}", self.running[number].0);
                    self.failures.0.push((self.running.remove(number).0, error));
                    self.next_at = now;
                }
            }
        }
        if now >= self.deadline {
            let text = format!("no answer within {}", humantime::format_duration(self.timeout));
            for (endpoint, _) in self.running.drain(..) {
                self.failures.0.push((endpoint, io::Error::new(ErrorKind::TimedOut, text.clone())));
            }
            for endpoint in self.waiting.drain(..) {
                self.failures.0.push((endpoint, io::Error::new(ErrorKind::TimedOut, text.clone())));
            }
        }
        while now >= self.next_at
            && let Some(endpoint) = self.waiting.pop_front()
        {
            let token = Token(self.begun);
            self.begun += 1;
            match dial(&endpoint, token) {
                Ok(socket) => {
                    self.running.push((endpoint, socket));
                    self.next_at = now + STAGGER;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.waiting.push_front(endpoint);
                    self.next_at = now + RETRY;
                }
                Err(error) => self.failures.0.push((endpoint, error)),
            }
        }
        let over = self.running.is_empty() && self.waiting.is_empty();
        over.then(|| Err(std::mem::take(&mut self.failures)))
    }

    /// How long nothing can be done unless an attempt becomes ready.
    pub fn sleep(&self, now: Instant) -> Duration {
        let next = if self.waiting.is_empty() { self.deadline } else { self.next_at.min(self.deadline) };
        next.saturating_duration_since(now)
    }
}

/// The families in turn, beginning with the one that the resolver prefers (RFC 8305, 4).
fn in_turn(endpoints: Vec<Endpoint>) -> VecDeque<Endpoint> {
    let is_ipv6 = |endpoint: &Endpoint| match endpoint {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => address.is_ipv6(),
        Endpoint::Unix(_) => false,
    };
    let first = endpoints.first().is_some_and(is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = endpoints.into_iter().partition(|endpoint| is_ipv6(endpoint) == first);
    let mut other = other.into_iter();
    let mut sorted = VecDeque::new();
    for endpoint in one {
        sorted.push_back(endpoint);
        sorted.extend(other.next());
    }
    sorted.extend(other);
    sorted
}

/// The addresses that were tried, each with what came of it.
#[derive(Debug, Default)]
pub(super) struct Failures(pub Vec<(Endpoint, io::Error)>);

impl Failures {
    /// The error for the user, who asked for `address`.
    pub fn explain(&self, address: &Address) -> anyhow::Error {
        let mut text = format!("cannot connect to {address}: ");
        match &self.0[..] {
            // One that reads like the address needs no repetition.
            [(endpoint, error)] if endpoint.to_string() == address.to_string() => text += &error.to_string(),
            _ => text += &self.to_string(),
        }
        let has = |kind| self.0.iter().any(|(_, error)| error.kind() == kind);
        if let Some(why) = self.0.iter().find_map(|(endpoint, error)| why_not_a_stream(endpoint, error)) {
            text += &format!("; {why}");
        } else if has(ErrorKind::ConnectionRefused) {
            text += &format!("; does anybody listen there? `echoloop serve {address}` would");
        } else if has(ErrorKind::NotFound) {
            text += &format!("; `echoloop serve {address}` would make it");
        } else if self.0.iter().any(|(_, error)| error.raw_os_error() == Some(Errno::MFILE.raw_os_error())) {
            text += "; raise the limit on open files (ulimit -n)";
        } else if self.0.iter().any(|(endpoint, error)| has_no_ipv6(endpoint, error)) {
            text += "; this machine has no IPv6 address to connect from";
        } else if has(ErrorKind::AddrNotAvailable) {
            text += "; every local port is taken: see net.ipv4.ip_local_port_range (sysctl)";
        } else if has(ErrorKind::TimedOut) {
            text += "; --connect-timeout can give it longer";
        }
        anyhow::Error::msg(text)
    }
}

/// Why a file cannot be connected to, whoever listens.
fn why_not_a_stream(endpoint: &Endpoint, error: &io::Error) -> Option<&'static str> {
    let Endpoint::Unix(path) = endpoint else { return None };
    if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) {
        return Some("the socket there is for datagrams or packets, and not a stream");
    }
    let metadata = fs::metadata(path).ok()?;
    (!metadata.file_type().is_socket()).then_some("the file there is no socket")
}

/// Whether IPv6 is off, as far as this address goes (connect(2), EADDRNOTAVAIL).
fn has_no_ipv6(endpoint: &Endpoint, error: &io::Error) -> bool {
    let (Endpoint::Tcp(address) | Endpoint::Udp(address)) = endpoint else { return false };
    address.is_ipv6() && error.kind() == ErrorKind::AddrNotAvailable
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (endpoint, error)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::reactor::scripted::{Scripted, Wire};

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        texts.iter().map(|text| Endpoint::Tcp(text.parse().unwrap())).collect()
    }

    /// A race in which a connection to each address has an outcome: `None` is silence.
    struct World {
        race: Race<Scripted>,
        wires: Vec<(String, Wire)>,
        now: Instant,
        began: Instant,
    }

    impl World {
        fn new(texts: &[&str]) -> World {
            let began = Instant::now();
            let race = Race::new(endpoints(texts), began, Duration::from_secs(10));
            World { race, wires: Vec::new(), now: began, began }
        }

        /// Makes turns until something is decided, or this much time has passed.
        fn run(&mut self, time: Duration) -> Option<Result<String, String>> {
            let until = self.now + time;
            loop {
                let wires = RefCell::new(&mut self.wires);
                let decided = self.race.turn(self.now, |endpoint, _| {
                    let wire = Wire::default();
                    wire.0.borrow_mut().connecting = true;
                    wires.borrow_mut().push((endpoint.to_string(), wire.clone()));
                    Ok(wire.socket())
                });
                match decided {
                    Some(Ok((endpoint, _))) => return Some(Ok(endpoint.to_string())),
                    Some(Err(failures)) => return Some(Err(failures.to_string())),
                    None if self.now >= until => return None,
                    None => {}
                }
                let sleep = self.race.sleep(self.now);
                assert!(!sleep.is_zero(), "it would spin");
                self.now = (self.now + sleep).min(until);
            }
        }

        fn tried(&self) -> Vec<&str> {
            self.wires.iter().map(|(address, _)| &**address).collect()
        }

        fn establish(&self, number: usize) {
            self.wires[number].1.0.borrow_mut().connecting = false;
        }

        fn refuse(&self, number: usize) {
            self.wires[number].1.0.borrow_mut().established = Some(ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn families_are_tried_in_turn() {
        let sorted = in_turn(endpoints(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]));
        let expected = endpoints(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(sorted, expected);
    }

    #[test]
    fn silence_starts_next_address_and_first_answer_wins() {
        let mut world = World::new(&["[::1]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(world.run(STAGGER - Duration::from_millis(1)), None);
        assert_eq!(world.tried(), ["[::1]:1"]);
        assert_eq!(world.run(Duration::from_millis(1)), None);
        assert_eq!(world.tried(), ["[::1]:1", "1.1.1.1:1"]);
        world.establish(1);
        assert_eq!(world.run(Duration::ZERO), Some(Ok("1.1.1.1:1".to_owned())));
        drop(world.race);
        assert!(world.wires[0].1.dropped(), "the others are given up");
    }

    #[test]
    fn refusal_starts_the_next_at_once() {
        let mut world = World::new(&["[::1]:1", "1.1.1.1:1"]);
        assert_eq!(world.run(Duration::ZERO), None);
        world.refuse(0);
        assert_eq!(world.run(Duration::ZERO), None);
        assert_eq!(world.tried(), ["[::1]:1", "1.1.1.1:1"]);
        world.refuse(1);
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        let error = format!("[::1]:1: {refused}; 1.1.1.1:1: {refused}");
        assert_eq!(world.run(Duration::ZERO), Some(Err(error)));
    }

    #[test]
    fn address_family_that_is_off_is_told() {
        for (address, remedy) in [("[::1]:7", "no IPv6 address"), ("192.0.2.1:7", "net.ipv4.ip_local_port_range")] {
            let [endpoint] = &endpoints(&[address])[..] else { unreachable!() };
            let failures = Failures(vec![(endpoint.clone(), ErrorKind::AddrNotAvailable.into())]);
            let text = failures.explain(&address.parse().unwrap()).to_string();
            assert!(text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn timeout_ends_it_and_names_all() {
        let mut world = World::new(&["[::1]:1", "1.1.1.1:1"]);
        let error = "[::1]:1: no answer within 10s; 1.1.1.1:1: no answer within 10s";
        assert_eq!(world.run(Duration::from_secs(60)), Some(Err(error.to_owned())));
        assert_eq!(world.now - world.began, Duration::from_secs(10));
    }

    #[test]
    fn full_backlog_is_tried_again() {
        let began = Instant::now();
        let mut race: Race<Scripted> = Race::new(vec![Endpoint::Unix("/x".into())], began, Duration::from_secs(10));
        assert!(race.turn(began, |_, _| Err(ErrorKind::WouldBlock.into())).is_none());
        assert_eq!(race.sleep(began), RETRY);
        assert!(race.turn(began + RETRY, |_, _| Ok(Wire::default().socket())).is_none());
        assert!(matches!(race.turn(began + RETRY, |_, _| unreachable!()), Some(Ok(_))));
    }
}
