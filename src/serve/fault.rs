//! An echo that misbehaves on request: `--fault`. And one that says who it is: `--greeting`.
//!
//! Clients, proxies and health checks meet services that are slow or wrong, and are tested with one that can be made so.
//! [`Faulty`] is a protocol around the [`Echo`], which stays what it is: what has been received is altered, delayed or cut
//! in pieces before the echo sees it, and where the echo would end a connection that may be done otherwise. Time comes
//! from the reactor's timer wheel: nothing is early, and late by a tick of 0.1 ms at most, and by what waking up takes.
//! While bytes are held back nothing more is read from that connection, so what it takes is bounded by one read, and TCP
//! pushes back. Datagrams that are held back wait in a queue that is bounded.
//!
//! Which connections misbehave and how is decided by a seed and the connection's number: the same seed, the same faults,
//! however fast they come.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use fastrand::Rng;
use log::{debug, trace};
use mio::Token;

use super::echo::{Echo, Session, StreamService};
use crate::count::counted;
use crate::reactor::socket::Origin;
use crate::reactor::{self, CloseReason, DatagramSocket, Envelope, Outlet, Protocol, Sent, Stream, Transport};
use crate::values;

/// The pause between two pieces, unless told otherwise.
const CHUNK_PAUSE: Duration = Duration::from_millis(1);

/// A bandwidth is kept by pieces of what may leave in such a time.
const BANDWIDTH_PIECES_PER_SECOND: u64 = 100;

/// Bytes of datagrams that are held back at most, and how many: further ones are lost.
const MAX_HELD_BYTES: usize = 4 * 1024 * 1024;
const MAX_HELD: usize = 16 * 1024;

/// Misbehaviour, and who answered.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FaultOptions {
    /// Misbehave, to test clients. May be given several times. Applies to all connections, or to a share of them
    /// (@10%): delay=5ms, delay=5ms..50ms, delay=exp:20ms (before each read, or datagram, is echoed); chunk=1..100,
    /// chunk=1..100/5ms (echo in pieces, with a pause of 1ms or the one given); bandwidth=1MiB (per second, for each
    /// connection, or for all datagrams together); stall-after=64KiB, reset-after=64KiB, close-after=64KiB (when so many
    /// bytes have been echoed); half-close=ignore, half-close=reset (when the peer has closed its side); drop=0.01,
    /// corrupt=0.01, duplicate=0.01, swap=0.01 (this fraction of the datagrams, or of the reads of a stream);
    /// translate=crlf, telnet, utf8, nul (as text files, terminals and C strings do); banner=TEXT; accept-delay=100ms
    /// (between two accepts); no-accept; freeze=1s/10s (the whole loop, for 1s in every 10s)
    #[arg(help_heading = "Fault injection", long, value_name = "SPEC[@SHARE]")]
    pub fault: Vec<Fault>,

    /// Seed of the faults: the same seed makes the same faults
    #[arg(help_heading = "Fault injection", long, value_name = "N", default_value_t = 1,
          value_parser = values::whole::<u64>(0..=u64::MAX))]
    pub fault_seed: u64,

    /// Send this line first on each connection, to tell servers apart. {host}, {port}, {pid} and {env:NAME} are filled
    /// in
    #[arg(help_heading = "Fault injection", long, value_name = "TEMPLATE")]
    pub greeting: Option<Greeting>,
}

impl FaultOptions {
    /// Whether there is anything that a plain echo does not do.
    pub fn is_some(&self) -> bool {
        !self.fault.is_empty() || self.greeting.is_some()
    }

    /// Those that do nothing where only datagrams are served.
    pub(super) fn about_streams_alone(&self) -> impl Iterator<Item = &Fault> {
        self.fault.iter().filter(|fault| !fault.kind.is_for_datagrams() && !matches!(fault.kind, Kind::Freeze { .. }))
    }

    /// How many connections may be accepted, and when.
    pub(super) fn accepting(&self) -> Accepting {
        let mut accepting = Accepting::Freely;
        for fault in &self.fault {
            match fault.kind {
                Kind::NoAccept => accepting = Accepting::Never,
                Kind::AcceptDelay(pause) => accepting = Accepting::Slowly(pause),
                _ => {}
            }
        }
        accepting
    }

    /// For how long the loop stands still, and how often.
    pub(super) fn freezing(&self) -> Option<(Duration, Duration)> {
        self.fault.iter().rev().find_map(|fault| match fault.kind {
            Kind::Freeze { length, every } => Some((length, every)),
            _ => None,
        })
    }

    /// The datagrams' part of it, if there is one.
    pub(super) fn datagrams(&self, counters: &SharedCounters) -> Option<Box<DatagramFaults>> {
        let faults: Vec<_> = self.fault.iter().filter(|fault| fault.kind.is_for_datagrams()).cloned().collect();
        (!faults.is_empty()).then(|| Box::new(DatagramFaults::new(faults, self.fault_seed, counters.clone())))
    }
}

/// How a server accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepting {
    Freely,
    Never,
    /// With such a pause between two.
    Slowly(Duration),
}

/// A kind of misbehaviour, and the share of connections that it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    kind: Kind,
    share: f64,
    text: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Delay(Delay),
    Chunk { sizes: RangeInclusive<u64>, pause: Duration },
    Bandwidth(u64),
    After { bytes: u64, then: Then },
    HalfClose(HalfClose),
    Drop(f64),
    Corrupt(f64),
    Duplicate(f64),
    Swap(f64),
    Translate(Translate),
    Banner(Vec<u8>),
    AcceptDelay(Duration),
    NoAccept,
    Freeze { length: Duration, every: Duration },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Delay {
    Between(Duration, Duration),
    Exponential(Duration),
}

impl Delay {
    fn draw(self, rng: &mut Rng) -> Duration {
        match self {
            Delay::Between(shortest, longest) => shortest + (longest - shortest).mul_f64(rng.f64()),
            Delay::Exponential(mean) => mean.mul_f64(-(1.0 - rng.f64()).ln()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stall,
    Reset,
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HalfClose {
    Ignore,
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Translate {
    Crlf,
    Telnet,
    Utf8,
    Nul,
}

impl Kind {
    fn is_for_datagrams(&self) -> bool {
        matches!(
            self,
            Kind::Delay(_)
                | Kind::Bandwidth(_)
                | Kind::Drop(_)
                | Kind::Corrupt(_)
                | Kind::Duplicate(_)
                | Kind::Swap(_)
                | Kind::Translate(_)
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        values::one_of_several(text, |text| {
            Fault::parse(text).map_err(|error| {
                let cause = error.split(": write it as in ").next().unwrap_or_default();
                let name = text.split(['=', '@']).next().unwrap_or_default();
                let example =
                    EXAMPLES.iter().find(|(kind, _)| *kind == name).map_or("delay=5ms", |(_, example)| example);
                format!("{cause}: write it as in {example}")
            })
        })
    }
}

/// The kinds of faults, and how to write each.
const EXAMPLES: [(&str, &str); 16] = [
    ("delay", "delay=5ms, delay=5ms..50ms, delay=exp:20ms"),
    ("chunk", "chunk=1..100, chunk=1..100/5ms"),
    ("bandwidth", "bandwidth=1MiB"),
    ("stall-after", "stall-after=64KiB"),
    ("reset-after", "reset-after=64KiB"),
    ("close-after", "close-after=64KiB"),
    ("half-close", "half-close=ignore, half-close=reset"),
    ("drop", "drop=0.01, drop=1%"),
    ("corrupt", "corrupt=0.01, corrupt=1%"),
    ("duplicate", "duplicate=0.01, duplicate=1%"),
    ("swap", "swap=0.01, swap=1%"),
    ("translate", "translate=crlf, translate=telnet, translate=utf8, translate=nul"),
    ("banner", "banner=hello"),
    ("accept-delay", "accept-delay=100ms"),
    ("no-accept", "no-accept"),
    ("freeze", "freeze=1s/10s"),
];

impl Fault {
    fn parse(text: &str) -> Result<Self, String> {
        let (spec, share) = match text.rsplit_once('@') {
            Some((spec, share)) if share.starts_with(|first: char| first.is_ascii_digit() || first == '.') => {
                (spec, probability(share).map_err(|error| format!("the share of connections, {share:?}: {error}"))?)
            }
            _ => (text, 1.0),
        };
        let (name, value) = spec.split_once('=').map_or((spec, None), |(name, value)| (name, Some(value)));
        let value = || value.ok_or_else(|| format!("{name} needs a value"));
        let share_of = |kind: fn(f64) -> Kind| probability(value().unwrap_or("1")).map(kind);
        let after = |then| Ok::<_, String>(Kind::After { bytes: values::any_size(value()?)?, then });
        let kind = match name {
            "delay" => Kind::Delay(delay(value()?)?),
            "chunk" => chunk(value()?)?,
            "bandwidth" => Kind::Bandwidth(values::bandwidth(value()?)?),
            "stall-after" => after(Then::Stall)?,
            "reset-after" => after(Then::Reset)?,
            "close-after" => after(Then::Close)?,
            "half-close" => Kind::HalfClose(match value()? {
                "ignore" => HalfClose::Ignore,
                "reset" => HalfClose::Reset,
                other => return Err(format!("half-close={other}: it is ignore or reset")),
            }),
            "drop" => share_of(Kind::Drop)?,
            "corrupt" => share_of(Kind::Corrupt)?,
            "duplicate" => share_of(Kind::Duplicate)?,
            "swap" => share_of(Kind::Swap)?,
            "translate" => Kind::Translate(match value()? {
                "crlf" => Translate::Crlf,
                "telnet" => Translate::Telnet,
                "utf8" => Translate::Utf8,
                "nul" => Translate::Nul,
                other => return Err(format!("translate={other}: it is crlf, telnet, utf8 or nul")),
            }),
            "banner" => Kind::Banner(unescape(value()?)?),
            "accept-delay" => Kind::AcceptDelay(values::positive_duration(value()?)?),
            "no-accept" if value().is_err() => Kind::NoAccept,
            "no-accept" => return Err("no-accept takes no value".to_owned()),
            "freeze" => {
                let value = value()?;
                let (length, every) =
                    value.split_once('/').ok_or("it does not say how often: 1s/10s is 1s in each 10s")?;
                let (length, every) = (values::positive_duration(length)?, values::positive_duration(every)?);
                if length >= every {
                    return Err(format!("frozen for {length:?} in each {every:?}, it would never serve"));
                }
                Kind::Freeze { length, every }
            }
            other => {
                let kinds: Vec<_> = EXAMPLES.iter().map(|(kind, _)| *kind).collect();
                return Err(format!("there is no fault {other:?} (there are {})", kinds.join(", ")));
            }
        };
        if share < 1.0 && matches!(kind, Kind::AcceptDelay(_) | Kind::NoAccept | Kind::Freeze { .. }) {
            return Err(format!("{name} is about the whole server, not about a share of its connections"));
        }
        Ok(Fault { kind, share, text: text.to_owned() })
    }
}

fn probability(text: &str) -> Result<f64, String> {
    let number = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    number
        .ok()
        .filter(|it| (0.0..=1.0).contains(it))
        .ok_or_else(|| format!("{text:?} is not a part of a whole, 0.01 or 1%"))
}

fn delay(text: &str) -> Result<Delay, String> {
    if let Some(mean) = text.strip_prefix("exp:") {
        return Ok(Delay::Exponential(values::positive_duration(mean)?));
    }
    let (shortest, longest) = text.split_once("..").unwrap_or((text, text));
    let (shortest, longest) = (values::duration(shortest)?, values::duration(longest)?);
    if shortest > longest {
        return Err(format!("{shortest:?} is more than {longest:?}"));
    }
    Ok(Delay::Between(shortest, longest))
}

fn chunk(text: &str) -> Result<Kind, String> {
    let (sizes, pause) = match text.split_once('/') {
        Some((sizes, pause)) => (sizes, values::positive_duration(pause)?),
        None => (text, CHUNK_PAUSE),
    };
    let (smallest, largest) = values::message_size(sizes)?;
    Ok(Kind::Chunk { sizes: smallest..=largest, pause })
}

/// What a text with the escapes `\n`, `\r`, `\t`, `\0`, `\\` and `\xNN` stands for.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let (&escape, tail) = rest.split_first().ok_or("a single \\ at the end: write \\\\")?;
        rest = tail;
        bytes.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = rest.get(2..).unwrap_or_default();
                byte.ok_or("\\x needs two hexadecimal digits, as in \\xff")?
            }
            other => return Err(format!("\\{} is no escape: there are \\n \\r \\t \\0 \\\\ \\xNN", char::from(other))),
        });
    }
    Ok(bytes)
}

/// A line that tells who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Host,
    Port,
    Process,
    Variable(String),
}

impl FromStr for Greeting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Greeting::parse(text).map_err(|cause| format!("{cause}: write it as in {{host}}:{{port}}"))
    }
}

impl Greeting {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("a { without its }")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(match name.split_once(':') {
                None if name == "host" => Part::Host,
                None if name == "port" => Part::Port,
                None if name == "pid" => Part::Process,
                Some(("env", variable)) if !variable.is_empty() => Part::Variable(variable.to_owned()),
                _ => {
                    return Err(format!(
                        "{{{name}}} is not known (there are {{host}}, {{port}}, {{pid}} and {{env:NAME}})"
                    ));
                }
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Greeting(parts))
    }
}

impl Greeting {
    /// The line of a server that listens on this port.
    fn line(&self, port: Option<u16>) -> Vec<u8> {
        let fill = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Host => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            Part::Port => port.map_or_else(String::new, |port| port.to_string()),
            Part::Process => std::process::id().to_string(),
            Part::Variable(name) => {
                std::env::var_os(name).map_or_else(String::new, |value| value.to_string_lossy().into_owned())
            }
        };
        let mut line: String = self.0.iter().map(fill).collect();
        line.push('\n');
        line.into_bytes()
    }
}

crate::counters! {
    /// What a server did wrong on request.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct FaultCounters {
        /// Connections that were to misbehave
        connections: Total = "faulty connections",
        /// Reads or datagrams that were echoed later
        delayed: Total = "delayed",
        /// Pieces that echoes were cut into, for a chunk size or a bandwidth
        pieces: Total = "pieces",
        /// Accepts that were put off
        accepts: Total = "accepts put off",
        /// Datagrams that found no room among those that are held back
        no_room: Total = "held back without room",
        /// Connections that stalled
        stalled: Total = "stalled",
        /// Connections that were reset
        reset: Total = "reset",
        /// Connections that were closed early
        closed: Total = "closed early",
        /// Ends of peers that were ignored
        ignored_ends: Total = "ignored ends",
        /// Reads or datagrams that were dropped
        dropped: Total = "lost on request",
        /// Reads or datagrams of which a bit was changed
        corrupted: Total = "corrupted",
        /// Reads or datagrams that were echoed twice
        duplicated: Total = "duplicated",
        /// Reads whose halves, or datagrams that, changed places
        swapped: Total = "swapped",
        /// Reads or datagrams that were translated
        translated: Total = "translated",
        /// Banners sent
        banners: Total = "banners",
        /// Times that the whole loop stood still
        freezes: Total = "freezes",
    }
}

/// Counters that streams and datagrams share.
pub(super) type SharedCounters = Rc<RefCell<FaultCounters>>;

/// An echo that misbehaves.
pub struct Faulty {
    echo: Echo,
    faults: Vec<Fault>,
    seed: u64,
    greeting: Vec<u8>,
    template: Option<Greeting>,
    /// Connections so far: a number for each.
    count: u64,
    counters: SharedCounters,
}

/// What is remembered about a connection.
pub struct Victim {
    echo: Option<Box<Session>>,
    plan: Option<Box<Plan>>,
}

/// How one connection is to misbehave, and how far that has got.
#[derive(Default)]
struct Plan {
    rng: Rng,
    delay: Option<Delay>,
    chunk: Option<(RangeInclusive<u64>, Duration)>,
    bandwidth: Option<u64>,
    /// After so many bytes more.
    limit: Option<(u64, Then)>,
    half_close: Option<HalfClose>,
    alter: Alter,
    banner: Vec<u8>,
    /// What has been received and not echoed, from `at` on; and when the next piece of it is due.
    held: Vec<u8>,
    at: usize,
    due: Option<Instant>,
    stalled: bool,
}

/// What is done to the bytes of one message.
#[derive(Default)]
struct Alter {
    drop: f64,
    corrupt: f64,
    duplicate: f64,
    swap: f64,
    translate: Option<Translate>,
}

impl Alter {
    /// Takes in a fault, if it is one of these.
    fn add(&mut self, kind: &Kind) {
        match kind {
            Kind::Drop(part) => self.drop = *part,
            Kind::Corrupt(part) => self.corrupt = *part,
            Kind::Duplicate(part) => self.duplicate = *part,
            Kind::Swap(part) => self.swap = *part,
            Kind::Translate(how) => self.translate = Some(*how),
            _ => {}
        }
    }

    /// What becomes of the bytes, but for how often and in which order they are sent; `None`: they are dropped.
    fn bytes(
        &self,
        rng: &mut Rng,
        counters: &mut FaultCounters,
        whom: &dyn fmt::Display,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        if rng.f64() < self.drop {
            counters.dropped += 1;
            debug!("fault: {whom}: dropped {}", counted(bytes.len(), "byte"));
            return None;
        }
        let mut bytes = bytes.to_vec();
        if let Some(how) = self.translate {
            let translated = how.translate(&bytes);
            if translated != bytes {
                counters.translated += 1;
                debug!("fault: {whom}: {how:?} made {} of {}", counted(translated.len(), "byte"), bytes.len());
            }
            bytes = translated;
        }
        if !bytes.is_empty() && rng.f64() < self.corrupt {
            counters.corrupted += 1;
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u32(..8);
            debug!("fault: {whom}: corrupted byte {at} of {}", bytes.len());
        }
        Some(bytes)
    }
}

impl Translate {
    fn translate(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Translate::Crlf => {
                bytes.iter().flat_map(|&it| [b'\r', it].into_iter().skip(usize::from(it != b'\n'))).collect()
            }
            Translate::Telnet => {
                bytes.iter().flat_map(|&it| [255, it].into_iter().skip(usize::from(it != 255))).collect()
            }
            Translate::Utf8 => String::from_utf8_lossy(bytes).into_owned().into_bytes(),
            Translate::Nul => bytes.iter().copied().filter(|&it| it != 0).collect(),
        }
    }
}

impl Faulty {
    /// An echo that does what the options say.
    pub(super) fn new(echo: Echo, options: &FaultOptions, counters: SharedCounters) -> Self {
        let (faults, template) = (options.fault.clone(), options.greeting.clone());
        Faulty { echo, faults, seed: options.fault_seed, greeting: Vec::new(), template, count: 0, counters }
    }

    /// Says on which port it listens, for the greeting.
    pub(super) fn set_port(&mut self, port: Option<u16>) {
        self.greeting = self.template.as_ref().map_or_else(Vec::new, |template| template.line(port));
    }

    /// How the next connection is to misbehave, if it is.
    fn plan(&mut self) -> Option<Box<Plan>> {
        self.count += 1;
        // The same for the same number, whatever other connections do.
        let mut rng = Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.count);
        let mut plan = Plan::default();
        let mut chosen = Vec::new();
        for fault in &self.faults {
            if rng.f64() >= fault.share {
                continue;
            }
            chosen.push(fault.text.as_str());
            match &fault.kind {
                Kind::Delay(delay) => plan.delay = Some(*delay),
                Kind::Chunk { sizes, pause } => plan.chunk = Some((sizes.clone(), *pause)),
                Kind::Bandwidth(rate) => plan.bandwidth = Some(*rate),
                Kind::After { bytes, then } if plan.limit.is_none_or(|(before, _)| *bytes < before) => {
                    plan.limit = Some((*bytes, *then));
                }
                Kind::HalfClose(how) => plan.half_close = Some(*how),
                Kind::Banner(text) => plan.banner.clone_from(text),
                other => plan.alter.add(other),
            }
        }
        plan.rng = rng;
        if chosen.is_empty() {
            return None;
        }
        debug!("fault: connection {} is to misbehave: {}", self.count, chosen.join(", "));
        self.counters.borrow_mut().connections += 1;
        Some(Box::new(plan))
    }

    /// Echoes what is due of what is held, and says when the next piece is.
    fn release<S: Stream>(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim) {
        let Some(plan) = &mut state.plan else { return };
        let now = transport.now();
        loop {
            if plan.limit.is_some_and(|(left, _)| left == 0) {
                plan.end(transport, &self.counters);
                return;
            }
            if plan.at == plan.held.len() || !transport.is_open() {
                plan.forget();
                transport.resume_reading();
                return;
            }
            let due = plan.due.unwrap_or(now);
            if due > now {
                transport.pause_reading();
                return;
            }
            let rest = plan.held.len() - plan.at;
            let (size, pause) = plan.next_piece(rest as u64);
            let piece = &plan.held[plan.at..plan.at + size];
            Protocol::<S>::received(&mut self.echo, transport, &mut state.echo, piece);
            plan.at += size;
            plan.due = Some(due + pause);
            if size < rest {
                self.counters.borrow_mut().pieces += 1;
                trace!("fault: token {}: {} of {rest}", transport.token().0, counted(size, "byte"));
            }
        }
    }
}

impl Plan {
    /// How many of so many bytes are echoed next, and how long it is to the piece after that.
    fn next_piece(&mut self, rest: u64) -> (usize, Duration) {
        let (mut size, mut pause) = (rest, Duration::ZERO);
        if let Some((sizes, between)) = &self.chunk {
            size = size.min(self.rng.u64(sizes.clone()));
            pause = *between;
        }
        if let Some(rate) = self.bandwidth {
            size = size.min((rate / BANDWIDTH_PIECES_PER_SECOND).max(1));
        }
        if let Some((left, _)) = &mut self.limit {
            size = size.min(*left);
            *left -= size;
        }
        if let Some(rate) = self.bandwidth {
            pause += Duration::from_secs_f64(size as f64 / rate as f64);
        }
        (size as usize, pause)
    }

    fn forget(&mut self) {
        // What is due of a bandwidth is kept: a pause between two reads is not made up for.
        (self.held, self.at) = (Vec::new(), 0);
    }

    /// The limit has been reached.
    fn end<S: Stream>(&mut self, transport: &mut Transport<'_, S>, counters: &SharedCounters) {
        let Some((_, then)) = self.limit.take() else { return };
        self.forget();
        self.due = None;
        debug!("fault: token {}: {then:?}", transport.token().0);
        let mut counters = counters.borrow_mut();
        match then {
            Then::Stall => {
                counters.stalled += 1;
                self.stalled = true;
                transport.pause_reading();
            }
            Then::Reset => {
                counters.reset += 1;
                transport.abort();
            }
            Then::Close => {
                counters.closed += 1;
                transport.close();
            }
        }
    }

    /// Takes in what a read brought.
    fn take(&mut self, token: Token, now: Instant, counters: &mut FaultCounters, bytes: &[u8]) {
        let whom = format_args!("token {}", token.0);
        let Some(mut bytes) = self.alter.bytes(&mut self.rng, counters, &whom, bytes) else { return };
        if bytes.len() > 1 && self.rng.f64() < self.alter.swap {
            counters.swapped += 1;
            debug!("fault: {whom}: swapped the halves of {}", counted(bytes.len(), "byte"));
            let middle = bytes.len() / 2;
            bytes.rotate_left(middle);
        }
        if self.rng.f64() < self.alter.duplicate {
            counters.duplicated += 1;
            debug!("fault: {whom}: {} twice", counted(bytes.len(), "byte"));
            bytes = bytes.repeat(2);
        }
        if self.held.is_empty() {
            self.held = bytes;
        } else {
            self.held.extend(bytes);
        }
        let earliest = self.due.filter(|due| *due > now).unwrap_or(now);
        self.due = Some(earliest);
        if let Some(delay) = self.delay.map(|delay| delay.draw(&mut self.rng)) {
            counters.delayed += 1;
            debug!("fault: {whom}: delayed by {delay:?}");
            self.due = Some(earliest.max(now + delay));
        }
    }
}

impl<S: Stream> Protocol<S> for Faulty {
    type State = Victim;

    const TICK: Duration = Duration::from_micros(100);

    fn accept(&mut self, origin: Origin, now: Instant) -> Result<Victim, reactor::Refusal> {
        let echo = Protocol::<S>::accept(&mut self.echo, origin, now)?;
        Ok(Victim { echo, plan: self.plan() })
    }

    fn opened(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim) {
        transport.write(&self.greeting);
        Protocol::<S>::opened(&mut self.echo, transport, &mut state.echo);
        let Some(plan) = &mut state.plan else { return };
        if !plan.banner.is_empty() {
            self.counters.borrow_mut().banners += 1;
            debug!("fault: token {}: a banner of {}", transport.token().0, counted(plan.banner.len(), "byte"));
            transport.write(&plan.banner);
        }
        self.release(transport, state); // it may be that nothing at all is to be echoed
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim, bytes: &[u8]) {
        let Some(plan) = &mut state.plan else {
            return Protocol::<S>::received(&mut self.echo, transport, &mut state.echo, bytes);
        };
        plan.take(transport.token(), transport.now(), &mut self.counters.borrow_mut(), bytes);
        self.release(transport, state);
    }

    fn read_drained(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim) {
        Protocol::<S>::read_drained(&mut self.echo, transport, &mut state.echo);
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim) {
        Protocol::<S>::flushed(&mut self.echo, transport, &mut state.echo);
    }

    fn eof(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim) {
        match state.plan.as_ref().and_then(|plan| plan.half_close) {
            Some(HalfClose::Ignore) => {
                debug!("fault: token {}: the peer's end is ignored", transport.token().0);
                self.counters.borrow_mut().ignored_ends += 1;
            }
            Some(HalfClose::Reset) => {
                debug!("fault: token {}: the peer's end is answered with a reset", transport.token().0);
                self.counters.borrow_mut().reset += 1;
                transport.abort();
            }
            None => Protocol::<S>::eof(&mut self.echo, transport, &mut state.echo),
        }
    }

    fn deadline(&self, state: &Victim) -> Option<Instant> {
        let held = state.plan.as_ref().filter(|plan| !plan.held.is_empty()).and_then(|plan| plan.due);
        let echo = Protocol::<S>::deadline(&self.echo, &state.echo);
        [held, echo].into_iter().flatten().min()
    }

    fn expired(&mut self, transport: &mut Transport<'_, S>, state: &mut Victim) {
        if Protocol::<S>::deadline(&self.echo, &state.echo).is_some_and(|due| due <= transport.now()) {
            return Protocol::<S>::expired(&mut self.echo, transport, &mut state.echo);
        }
        self.release(transport, state);
    }

    fn unsent(&mut self, state: &mut Victim, bytes: usize) {
        Protocol::<S>::unsent(&mut self.echo, &mut state.echo, bytes);
    }

    fn closed(&mut self, token: Token, state: Victim, reason: &CloseReason) {
        Protocol::<S>::closed(&mut self.echo, token, state.echo, reason);
    }
}

impl<S: Stream> StreamService<S> for Faulty {
    fn echo(&self) -> &Echo {
        &self.echo
    }
}

/// What is done to datagrams.
pub(super) struct DatagramFaults {
    faults: Vec<Fault>,
    rng: Rng,
    counters: SharedCounters,
    /// One that is sent behind the next.
    swapped: Option<(Vec<u8>, Envelope)>,
    /// Those that are sent later.
    held: BinaryHeap<Reverse<Held>>,
    held_bytes: usize,
    /// How many were held back so far: those that are due together leave in their order.
    count: u64,
    /// When all that were sent before have left, at the bandwidth that there is.
    free_at: Option<Instant>,
}

/// A datagram that is held back.
struct Held {
    due: Instant,
    number: u64,
    token: Token,
    bytes: Vec<u8>,
    envelope: Envelope,
}

impl Held {
    fn key(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl DatagramFaults {
    fn new(faults: Vec<Fault>, seed: u64, counters: SharedCounters) -> Self {
        DatagramFaults {
            faults,
            rng: Rng::with_seed(seed),
            counters,
            swapped: None,
            held: BinaryHeap::new(),
            held_bytes: 0,
            count: 0,
            free_at: None,
        }
    }

    /// Answers a datagram, or not, or otherwise.
    pub fn answer<D: DatagramSocket>(&mut self, outlet: &mut Outlet<'_, D>, bytes: &[u8], envelope: &Envelope) -> Sent {
        let mut alter = Alter::default();
        let (mut delay, mut bandwidth) = (None, None);
        for fault in &self.faults {
            if self.rng.f64() < fault.share {
                match fault.kind {
                    Kind::Delay(how) => delay = Some(how),
                    Kind::Bandwidth(rate) => bandwidth = Some(rate),
                    ref other => alter.add(other),
                }
            }
        }
        let whom = format_args!("datagram from {}", envelope.from);
        let altered = alter.bytes(&mut self.rng, &mut self.counters.borrow_mut(), &whom, bytes);
        let Some(bytes) = altered else { return Sent::Taken };
        let mut batch = vec![(bytes, *envelope)];
        if self.rng.f64() < alter.duplicate {
            self.counters.borrow_mut().duplicated += 1;
            debug!("fault: {whom}: sent twice");
            batch.push(batch[0].clone());
        }
        match self.swapped.take() {
            Some(earlier) => batch.push(earlier),
            None if self.rng.f64() < alter.swap => {
                self.counters.borrow_mut().swapped += 1;
                debug!("fault: {whom}: sent behind the next");
                self.swapped = batch.pop();
            }
            None => {}
        }
        let delay = delay.map(|delay| delay.draw(&mut self.rng));
        if let Some(delay) = delay {
            self.counters.borrow_mut().delayed += batch.len() as u64;
            debug!("fault: {whom}: delayed by {delay:?}");
        }
        let mut sent = Sent::Taken;
        for (bytes, envelope) in batch {
            match self.due(outlet.now(), delay, bandwidth, bytes.len()) {
                Some(due) => self.hold(due, outlet.token(), bytes, envelope),
                None => sent = outlet.send(&bytes, &envelope),
            }
        }
        sent
    }

    /// When so many bytes are to leave, if not now.
    fn due(&mut self, now: Instant, delay: Option<Duration>, bandwidth: Option<u64>, size: usize) -> Option<Instant> {
        let mut due = now + delay.unwrap_or_default();
        if let Some(rate) = bandwidth {
            due = due.max(self.free_at.unwrap_or(now));
            self.free_at = Some(due + Duration::from_secs_f64(size as f64 / rate as f64));
        }
        (due > now).then_some(due)
    }

    fn hold(&mut self, due: Instant, token: Token, bytes: Vec<u8>, envelope: Envelope) {
        if self.held.len() == MAX_HELD || self.held_bytes + bytes.len() > MAX_HELD_BYTES {
            self.counters.borrow_mut().no_room += 1;
            debug!("fault: datagram from {}: lost, for {} are held back", envelope.from, self.held.len());
            return;
        }
        self.held_bytes += bytes.len();
        self.count += 1;
        self.held.push(Reverse(Held { due, number: self.count, token, bytes, envelope }));
    }

    /// When the next of those is due that are held back.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    /// Takes one out that is due, with the socket that it is to leave by.
    pub fn take_due(&mut self, now: Instant) -> Option<(Token, Vec<u8>, Envelope)> {
        self.next_due().filter(|due| *due <= now)?;
        let Reverse(Held { token, bytes, envelope, .. }) = self.held.pop()?;
        self.held_bytes -= bytes.len();
        Some((token, bytes, envelope))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::access::{AccessOptions, DatagramGate};
    use super::super::datagrams::DatagramEcho;
    use super::*;
    use crate::reactor::scripted::{Scripted, ScriptedPort, Wire, read_closed, readable};
    use crate::reactor::{Datagrams, Reactor, Settings, Source};

    struct World {
        reactor: Reactor<Scripted, Faulty>,
        counters: SharedCounters,
        now: Instant,
    }

    impl World {
        fn new(specs: &[&str]) -> World {
            World::seeded(specs, 1)
        }

        fn seeded(specs: &[&str], seed: u64) -> World {
            let fault = specs.iter().map(|spec| spec.parse().unwrap()).collect();
            let options = FaultOptions { fault, fault_seed: seed, greeting: None };
            let counters = SharedCounters::default();
            let faulty = Faulty::new(Echo::new(None, None), &options, counters.clone());
            World { reactor: Reactor::new(faulty, Settings::default()), counters, now: Instant::now() }
        }

        fn open(&mut self) -> (Token, Wire) {
            let wire = Wire::default();
            let now = self.now;
            let opened = self.reactor.open(|_, faulty| {
                let state = Protocol::<Scripted>::accept(faulty, Origin::Unix, now).unwrap();
                Ok((wire.socket(), state))
            });
            (opened.unwrap(), wire)
        }

        fn arrive(&mut self, (token, wire): &(Token, Wire), bytes: &[u8]) {
            wire.arrive(bytes);
            self.reactor.turn_with(self.now, [readable(*token)]);
        }

        fn pass(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
            self.reactor.turn(self.now);
        }

        /// Passes the time that the loop would sleep, until nothing is to come.
        fn run(&mut self) {
            for _ in 0..100_000 {
                let Some(sleep) = self.reactor.sleep(self.now) else { return };
                self.now += sleep;
                self.reactor.turn(self.now);
            }
            panic!("it never rests");
        }
    }

    #[test]
    fn a_delayed_connection_is_not_read_meanwhile() {
        let mut world = World::new(&["delay=50ms"]);
        let peer = world.open();
        world.arrive(&peer, b"one");
        world.arrive(&peer, b"two");
        assert_eq!((peer.1.written(), peer.1.0.borrow().read.len()), (vec![], 3), "the second waits in the kernel");
        world.pass(49);
        assert_eq!(peer.1.written(), b"");
        // The reactor's milliseconds began a little before the world's.
        world.pass(2);
        assert_eq!(peer.1.written(), b"one");
        world.run();
        assert_eq!(peer.1.written(), b"onetwo");
        assert_eq!(world.counters.borrow().delayed, 2);
    }

    #[test]
    fn delays_are_never_short_and_late_by_a_tick() {
        let tick = <Faulty as Protocol<Scripted>>::TICK;
        for (spec, delay) in [("delay=1ms", 1_000), ("delay=370us", 370), ("delay=250ms", 250_000)] {
            let mut world = World::new(&[spec]);
            let peer = world.open();
            for number in 1..50 {
                world.now += Duration::from_micros(number * 37);
                let (due, until) = (world.now + Duration::from_micros(delay), world.now + Duration::from_secs(1));
                world.arrive(&peer, b"x");
                while peer.1.written().len() < number as usize {
                    world.now += world.reactor.sleep(world.now).expect("it is due");
                    assert!(world.now < until, "{spec}");
                    world.reactor.turn(world.now);
                }
                assert!((due..=due + tick).contains(&world.now), "{spec}: {:?} late", world.now - due);
            }
        }
    }

    #[test]
    fn pieces_and_bandwidth_take_time_lose_nothing() {
        let message = [b'x'; 1000];
        for (spec, millis) in [("chunk=10/5ms", 99 * 5), ("bandwidth=10000", 90)] {
            let mut world = World::new(&[spec]);
            let peer = world.open();
            let began = world.now;
            world.arrive(&peer, &message);
            world.run();
            assert_eq!(peer.1.written(), message);
            let took = world.now - began;
            assert!(took >= Duration::from_millis(millis) && took < Duration::from_millis(millis + 20), "{took:?}");
        }
    }

    #[test]
    fn limits_end_a_connection_each_in_its_way() {
        for (spec, echoed, dropped) in
            [("stall-after=5", 5, false), ("reset-after=5", 5, true), ("close-after=0", 0, false)]
        {
            let mut world = World::new(&[spec]);
            let peer = world.open();
            world.arrive(&peer, b"0123456789");
            assert_eq!(peer.1.written(), b"0123456789"[..echoed], "{spec}");
            assert_eq!((peer.1.dropped(), peer.1.shut()), (dropped, spec.starts_with("close")), "{spec}");
            assert_eq!(peer.1.reset(), dropped, "{spec}");
        }
    }

    #[test]
    fn each_wrong_that_is_done_is_counted() {
        let one = FaultCounters { connections: 1, ..FaultCounters::default() };
        for (spec, expected) in [
            ("delay=1ms", FaultCounters { delayed: 2, ..one }),
            ("chunk=1/1ms", FaultCounters { pieces: 2, ..one }),
            ("stall-after=4", FaultCounters { stalled: 1, ..one }),
            ("reset-after=4", FaultCounters { reset: 1, ..one }),
            ("close-after=4", FaultCounters { closed: 1, ..one }),
            ("half-close=ignore", FaultCounters { ignored_ends: 1, ..one }),
            ("drop", FaultCounters { dropped: 2, ..one }),
            ("corrupt", FaultCounters { corrupted: 2, ..one }),
            ("duplicate", FaultCounters { duplicated: 2, ..one }),
            ("swap", FaultCounters { swapped: 2, ..one }),
            ("translate=crlf", FaultCounters { translated: 2, ..one }),
            ("banner=hi", FaultCounters { banners: 1, ..one }),
        ] {
            let mut world = World::new(&[spec]);
            let peer = world.open();
            for message in [b"a\n", b"b\n"] {
                world.arrive(&peer, message);
                world.run();
            }
            peer.1.end();
            world.reactor.turn_with(world.now, [read_closed(peer.0)]);
            assert_eq!(*world.counters.borrow(), expected, "{spec}");
        }
    }

    #[test]
    fn an_end_is_ignored_or_answered_with_reset() {
        for (spec, dropped) in [("half-close=ignore", false), ("half-close=reset", true)] {
            let mut world = World::new(&[spec]);
            let peer = world.open();
            world.arrive(&peer, b"hello");
            peer.1.end();
            world.reactor.turn_with(world.now, [read_closed(peer.0)]);
            assert_eq!(
                (peer.1.written(), peer.1.shut(), peer.1.dropped()),
                (b"hello".to_vec(), false, dropped),
                "{spec}"
            );
        }
    }

    #[test]
    fn bytes_are_altered_as_told() {
        for (spec, sent, echoed) in [
            ("drop", &b"ab"[..], &b""[..]),
            ("duplicate", b"ab", b"abab"),
            ("swap", b"ab", b"ba"),
            ("translate=crlf", b"a\nb", b"a\r\nb"),
            ("translate=telnet", b"\xff\xfd", b"\xff\xff\xfd"),
            ("translate=utf8", b"\xe2\x82", "\u{fffd}".as_bytes()),
            ("translate=nul", b"a\0b", b"ab"),
            ("banner=hi\\n", b"", b"hi\n"),
        ] {
            let mut world = World::new(&[spec]);
            let peer = world.open();
            world.arrive(&peer, sent);
            assert_eq!(peer.1.written(), echoed, "{spec}");
        }
        let mut world = World::new(&["corrupt"]);
        let peer = world.open();
        world.arrive(&peer, b"ab");
        let bits: u32 = peer.1.written().iter().zip(b"ab").map(|(is, was)| (is ^ was).count_ones()).sum();
        assert_eq!(bits, 1);
    }

    #[test]
    fn the_same_seed_chooses_the_same_connections() {
        let chosen = |seed| {
            let mut world = World::seeded(&["drop@30%"], seed);
            let peers: Vec<_> = (0..200).map(|_| world.open()).collect();
            peers.iter().for_each(|peer| world.arrive(peer, b"x"));
            peers.iter().map(|peer| peer.1.written().is_empty()).collect::<Vec<_>>()
        };
        let first = chosen(7);
        assert_eq!(first, chosen(7));
        assert_ne!(first, chosen(8));
        let count = first.iter().filter(|chosen| **chosen).count();
        assert!((30..90).contains(&count), "{count} of 200");
    }

    #[test]
    fn a_stop_sends_what_is_delayed() {
        let mut world = World::new(&["delay=50ms"]);
        let peer = world.open();
        world.arrive(&peer, b"late");
        world.reactor.drain();
        world.pass(55);
        peer.1.end();
        world.reactor.turn_with(world.now, [read_closed(peer.0)]);
        assert_eq!(peer.1.written(), b"late");
        assert!(peer.1.dropped());
    }

    /// What a server for datagrams with these faults sends, and when, in milliseconds: five datagrams come at once.
    fn datagrams(specs: &[&str], seed: u64) -> (Vec<(u64, Vec<u8>)>, FaultCounters) {
        let fault = specs.iter().map(|spec| spec.parse().unwrap()).collect();
        let options = FaultOptions { fault, fault_seed: seed, greeting: None };
        let counters = SharedCounters::default();
        let faults = options.datagrams(&counters);
        let gate = DatagramGate::new(&AccessOptions::default());
        let mut datagrams = Datagrams::new(DatagramEcho { gate, printer: None, hex: false, faults }, 0);
        let port = ScriptedPort::default();
        let token = datagrams.add(|_| Ok(port.clone())).unwrap();
        for number in 0..5 {
            port.arrive(&[(&[number; 1000], 5000)]);
        }
        let began = Instant::now();
        let (mut now, mut sent) = (began, Vec::new());
        datagrams.turn_with(now, [readable(token)]);
        for _ in 0..1000 {
            for (bytes, _) in port.sent().split_off(sent.len()) {
                sent.push(((now - began).as_millis() as u64, bytes));
            }
            let Some(sleep) = datagrams.sleep(now) else {
                let counters = *counters.borrow();
                return (sent, counters);
            };
            now += sleep;
            datagrams.turn(now);
        }
        panic!("it never rests");
    }

    #[test]
    fn datagrams_are_delayed_and_limited_in_bandwidth() {
        let times = |specs: &[&str]| datagrams(specs, 1).0.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(times(&["delay=50ms"]), [50; 5]);
        assert_eq!(times(&["bandwidth=10000"]), [0, 100, 200, 300, 400]);
        assert_eq!(times(&["delay=50ms", "bandwidth=100000"]), [50, 60, 70, 80, 90]);
        let (sent, counters) = datagrams(&["delay=1ms..1s@50%", "duplicate@50%"], 3);
        assert_eq!(sent.len() as u64, 5 + counters.duplicated);
        assert!((1..5).contains(&counters.delayed), "{counters:?}");
        assert_eq!(sent, datagrams(&["delay=1ms..1s@50%", "duplicate@50%"], 3).0, "the same seed, the same faults");
    }

    #[test]
    fn datagrams_held_back_are_bounded() {
        let mut faults = DatagramFaults::new(vec!["delay=1h".parse().unwrap()], 1, SharedCounters::default());
        let envelope = Envelope::from(SocketAddr::from(([127, 0, 0, 1], 5000)));
        for _ in 0..100 {
            faults.hold(Instant::now(), Token(0), vec![0; 65_507], envelope);
        }
        assert!(faults.held_bytes <= MAX_HELD_BYTES && faults.held.len() == 64, "{}", faults.held.len());
        assert_eq!(faults.counters.borrow().no_room, 36);
    }

    #[test]
    fn mistakes_name_cause_and_remedy() {
        for (text, says) in [
            ("dealy=5ms", "there are delay, chunk"),
            ("delay", "as in delay=5ms, delay=5ms..50ms"),
            ("delay=9ms..1ms", "is more than"),
            ("drop=2", "0.01 or 1%"),
            ("drop@200%", "the share of connections"),
            ("half-close=never", "ignore or reset"),
            ("freeze=2s/1s", "never serve"),
            ("freeze=1s/2s@5%", "the whole server"),
            ("banner=\\q", "is no escape"),
            ("no-accept=1", "takes no value"),
        ] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!("{who}".parse::<Greeting>().unwrap_err().contains("{env:NAME}"));
        assert!("banner=me@home".parse::<Fault>().is_ok(), "no share");
    }

    #[test]
    fn the_greeting_is_filled_in() {
        let greeting: Greeting = "port {port}, process {pid}, {env:NO_SUCH_VARIABLE}!".parse().unwrap();
        let line = format!("port 7, process {}, !\n", std::process::id());
        assert_eq!(greeting.line(Some(7)), line.as_bytes());
    }
}
