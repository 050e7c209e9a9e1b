//! The ways to load a server, and what is looked at in each.

use indicatif::HumanCount;

use crate::measure::Measure;

/// What a server listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Unix,
    Udp,
}

/// How the load is made.
pub enum Load {
    /// `echoloop bench` with these flags; N stands for the number that is scaled.
    Bench(&'static [&'static str]),
    /// The first beside the second, which is what is measured; the bytes per second of the first too.
    Beside(&'static [&'static str], &'static [&'static str]),
    /// At half the rate that the slowest server reaches with these flags, in an open loop.
    HalfOfTheSlowest(&'static [&'static str]),
    /// N peers that send and never read, beside this.
    Unreading(&'static [&'static str]),
    /// N connects at once.
    Burst,
    /// N connections, one after the other, and the memory after a two-hundredth of them against that after all.
    Soak(&'static [&'static str]),
}

/// A way to load a server.
pub struct Scenario {
    pub name: &'static str,
    /// N stands for the number that is scaled.
    pub about: &'static str,
    pub kind: Kind,
    pub load: Load,
    /// Connections that carry messages.
    pub busy: usize,
    /// Further ones, or whatever else there are many of, when a server is measured for a second or more.
    pub many: usize,
    /// What is looked at. The first is what it is about.
    pub measures: &'static [Measure],
    /// It is among those of which messages per second are the figure.
    pub plain: bool,
}

impl Scenario {
    /// Connections at once, so that servers that cannot hold as many are left out.
    pub fn connections(&self) -> usize {
        self.busy + if matches!(self.load, Load::Soak(_)) { 0 } else { self.many }
    }

    /// Whether servers that start a process for each connection have a part in it.
    pub fn takes_processes(&self) -> bool {
        self.plain && self.kind == Kind::Tcp
    }

    /// Whether the slowest server sets the pace of all.
    pub fn is_paced(&self) -> bool {
        matches!(self.load, Load::HalfOfTheSlowest(_))
    }

    /// Its number at so many seconds a server.
    pub fn scaled(&self, seconds: f64) -> usize {
        let scale = seconds.min(1.0);
        // What takes time for each connection is scaled once more.
        let scale = if matches!(self.load, Load::Soak(_) | Load::Unreading(_)) { scale * scale } else { scale };
        (self.many as f64 * scale) as usize
    }

    /// What it is, with its number.
    pub fn about(&self, seconds: f64) -> String {
        self.about.replace('N', &HumanCount(self.scaled(seconds) as u64).to_string())
    }
}

const RATE: &[Measure] = &[Measure::Rate, Measure::P50, Measure::P99, Measure::Cpu, Measure::Memory];
const LATENCY: &[Measure] = &[Measure::P999, Measure::P99, Measure::P50, Measure::Cpu];

const PLAIN: Scenario =
    Scenario { name: "", about: "", kind: Kind::Tcp, load: Load::Burst, busy: 0, many: 0, measures: RATE, plain: true };
const USERS: Scenario = Scenario { plain: false, ..PLAIN };

pub const SCENARIOS: [Scenario; 17] = [
    Scenario { name: "ping", about: "1 connection, 64 B", load: Load::Bench(&["-c", "1"]), busy: 1, ..PLAIN },
    Scenario { name: "100", about: "100 connections, 64 B", load: Load::Bench(&["-c", "100"]), busy: 100, ..PLAIN },
    Scenario {
        name: "1000",
        about: "1,000 connections, 64 B",
        load: Load::Bench(&["-c", "1000"]),
        busy: 1000,
        ..PLAIN
    },
    Scenario {
        name: "pipelined",
        about: "50 connections, 64 B, 32 in flight",
        load: Load::Bench(&["-c", "50", "-d", "32"]),
        busy: 50,
        ..PLAIN
    },
    Scenario {
        name: "bulk",
        about: "8 connections, 64 KiB, 4 in flight",
        load: Load::Bench(&["-c", "8", "-d", "4", "-s", "64KiB"]),
        busy: 8,
        ..PLAIN
    },
    Scenario {
        name: "idle",
        about: "100 connections, 64 B, beside N idle ones",
        load: Load::Bench(&["-c", "100", "--idle", "N"]),
        busy: 100,
        many: 8000,
        ..PLAIN
    },
    Scenario {
        name: "churn",
        about: "20 connections, each closed after one echo and opened again",
        load: Load::Bench(CHURN),
        busy: 20,
        ..PLAIN
    },
    Scenario {
        name: "memory",
        about: "N idle connections",
        load: Load::Bench(&["-c", "0", "--idle", "N"]),
        many: 15_000,
        measures: &[Measure::Memory],
        ..PLAIN
    },
    Scenario {
        name: "mixed",
        about: "50 connections, 64 B, 2,000 messages/s in all, beside 4 of 64 KiB, 64 in flight",
        load: Load::Beside(&["-c", "4", "-d", "64", "-s", "64KiB"], &["-c", "50", "--rate", "2000"]),
        busy: 54,
        measures: &[Measure::P99, Measure::P50, Measure::P999, Measure::Bulk],
        ..USERS
    },
    Scenario {
        name: "tail",
        about: "100 connections, 64 B, at R messages/s in all: half of what the slowest can do",
        load: Load::HalfOfTheSlowest(&["-c", "100"]),
        busy: 100,
        measures: LATENCY,
        ..USERS
    },
    Scenario {
        name: "unreading",
        about: "10 connections, 64 B, 1,000 messages/s in all, beside N that send and never read",
        load: Load::Unreading(&["-c", "10", "--rate", "1000"]),
        busy: 10,
        many: 1000,
        measures: &[Measure::Memory, Measure::P99, Measure::P50],
        ..USERS
    },
    Scenario {
        name: "sleepers",
        about: "N connections, 64 B, a message a second each",
        load: Load::Bench(&["-c", "N", "--rate", "N"]),
        many: 15_000,
        measures: &[Measure::Cpu, Measure::P99, Measure::P50, Measure::Memory],
        ..USERS
    },
    Scenario {
        name: "burst",
        about: "N connects at once, until all have had an echo",
        load: Load::Burst,
        many: 5000,
        measures: &[Measure::AllEchoed, Measure::P50],
        ..USERS
    },
    Scenario {
        name: "unix",
        about: "100 connections over a Unix socket, 64 B",
        kind: Kind::Unix,
        load: Load::Bench(&["-c", "100"]),
        busy: 100,
        ..USERS
    },
    Scenario {
        name: "udp",
        about: "50 sockets, datagrams of 64 B",
        kind: Kind::Udp,
        load: Load::Bench(&["-c", "50"]),
        measures: DATAGRAMS,
        ..USERS
    },
    Scenario {
        name: "udp 1,200 B",
        about: "50 sockets, datagrams of 1,200 B",
        kind: Kind::Udp,
        load: Load::Bench(&["-c", "50", "-s", "1200"]),
        measures: DATAGRAMS,
        ..USERS
    },
    Scenario {
        name: "soak",
        about: "N connections, each closed after one echo: memory after all of them against after the first 200th",
        load: Load::Soak(CHURN),
        busy: 20,
        many: 200_000,
        measures: &[Measure::Growth, Measure::Rate, Measure::Cpu],
        ..USERS
    },
];

const DATAGRAMS: &[Measure] = &[Measure::Rate, Measure::P50, Measure::P99, Measure::Cpu];

/// Several addresses, because closed connections keep their ports for a while.
const CHURN: &[&str] = &["-c", "20", "--reconnect", "1", "--source", "127.0.0.1-127.0.0.9"];
