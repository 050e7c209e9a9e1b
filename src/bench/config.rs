//! What load to make: the options of `bench`, each declared once, here.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::time::{Duration, SystemTime};

use clap::Args;

use super::clock::nanos;
use super::criterion::Criterion;
use super::dial::{Family, Sources};
use super::schedule::Schedule;
use super::summary::Settings;
use crate::reactor::address::{self, Address};
use crate::{destination, values};

/// How long is measured, unless something else ends it.
const DURATION: Duration = Duration::from_secs(10);

/// What load to make.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Load HOST:PORT, udp:HOST:PORT or unix:PATH. PORT alone is on 127.0.0.1; an IPv6 address is in brackets, as in
    /// [::1]:7777; with udp: each message is a datagram
    #[arg(value_name = "ADDR", default_value = address::DEFAULT, value_parser = destination::destination)]
    pub address: Address,

    /// Connections that carry messages. May be 0 if there are --idle ones
    #[arg(help_heading = "Load", short, long, value_name = "N", default_value_t = 50, value_parser = values::connections)]
    pub connections: usize,

    /// Further connections that are held open and silent, to see what they cost
    #[arg(help_heading = "Load", long, value_name = "N", default_value_t = 0, value_parser = values::connections)]
    pub idle: usize,

    /// Open R connections per second. By default they are opened as fast as possible
    #[arg(help_heading = "Load", long, value_name = "R", value_parser = values::positive_rate)]
    pub connect_rate: Option<f64>,

    /// Size of messages, like 16KiB or 1..4KiB. Within a range sizes are distributed uniformly
    #[arg(help_heading = "Load", short, long, value_name = "SIZE", default_value = "64", value_parser = values::message_size)]
    pub size: (u64, u64),

    /// Messages in flight on each connection. At most 64 for datagrams
    #[arg(help_heading = "Load", short, long, value_name = "N", default_value_t = 1, value_parser = values::depth,
          conflicts_with = "rate")]
    pub depth: u64,

    /// Send R messages per second, on a schedule. They are spread over all connections, and the schedule does not wait
    /// for replies (an open loop)
    #[arg(help_heading = "Load", short, long, value_name = "R", value_parser = values::positive_rate)]
    pub rate: Option<f64>,

    /// Measure for DUR (10s unless --messages is given)
    #[arg(help_heading = "Start and stop", short = 't', long, value_name = "DUR", value_parser = values::positive_duration)]
    pub duration: Option<Duration>,

    /// Measure at most N messages
    #[arg(help_heading = "Start and stop", short = 'n', long, value_name = "N", value_parser = values::messages)]
    pub messages: Option<u64>,

    /// Open all connections, then wait until TIME before sending. UTC, such as 2026-11-24T20:00:00Z: several generators
    /// can start together
    #[arg(help_heading = "Start and stop", long, value_name = "TIME", value_parser = values::instant)]
    pub start_at: Option<SystemTime>,

    /// Load for DUR before measuring. That load is not part of the results
    #[arg(help_heading = "Start and stop", long, value_name = "DUR", default_value = "1s", value_parser = values::duration)]
    pub warm_up: Duration,

    /// Find the highest rate at which EXPR holds. EXPR is a criterion such as 'p99<5ms'. The rate is doubled until it
    /// does not hold, and then bisected. A step holds if that is shown with 95 % confidence, and counts if two of three
    /// tries agree. --rate is where to begin [1000], --duration the length of each step [at least 2s, and as long as
    /// the percentile needs]
    #[arg(help_heading = "Load", long, value_name = "EXPR", conflicts_with_all = ["messages", "depth"])]
    pub find_rate: Option<Criterion>,

    /// Close each connection after N messages, and open another
    #[arg(help_heading = "Load", long, value_name = "N", value_parser = values::messages)]
    pub reconnect: Option<u64>,

    /// Connect from these local addresses in turn, such as 127.0.0.1-127.0.0.9. For more connections than one address
    /// has ports
    #[arg(help_heading = "Sockets", long = "source", value_name = "IP[,IP...]")]
    pub sources: Option<Sources>,

    /// Use only the IPv4 addresses of a host name
    #[arg(help_heading = "Sockets", short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,

    /// Use only the IPv6 addresses of a host name
    #[arg(help_heading = "Sockets", short = '6', long)]
    pub ipv6: bool,

    /// Distribute the connections over all addresses of a host name. By default all go to the first one that accepts a
    /// connection; the report says which
    #[arg(help_heading = "Sockets", long)]
    pub all_addresses: bool,

    /// Count replies later than DUR as errors. The same goes for connects; a run without any connection for that long
    /// ends
    #[arg(help_heading = "Start and stop", long, value_name = "DUR", default_value = "5s", value_parser = values::positive_duration)]
    pub timeout: Duration,

    /// Seed of message sizes and contents: the same seed makes the same messages
    #[arg(help_heading = "Load", long, value_name = "N", default_value_t = 1, value_parser = values::whole::<u64>(0..=u64::MAX))]
    pub seed: u64,

    /// Spin for up to DUR, such as 50us, before sleeping in the poll. Finer timing at the price of a busy core
    #[arg(help_heading = "Sockets", long, value_name = "DUR", default_value = "0s", value_parser = values::duration)]
    pub busy_poll: Duration,

    /// Report CPU and memory of the server process PID. Its threads and children are included: CPU time per message,
    /// memory per connection. On this machine, on Linux
    #[arg(help_heading = "Output", long, value_name = "PID", value_parser = values::pid)]
    pub watch_pid: Option<i32>,

    /// Report on each of the servers behind one address. They are told apart by the line that each sends first (`serve
    /// --greeting`); a connection is open once that line has come
    #[arg(help_heading = "Output", long)]
    pub by_greeting: bool,

    /// Name of this run in reports. By default the address
    #[arg(help_heading = "Output", long, value_name = "TEXT")]
    pub name: Option<String>,
}

impl Config {
    /// Refuses a criterion that can never be under this configuration.
    pub fn check_criterion(&self, criterion: &Criterion) -> Result<(), String> {
        criterion.check(matches!(self.address, Address::Udp(_)), self.is_open_loop(), self.connections)
    }

    /// Refuses options that mean nothing together, or under which nothing can be due.
    ///
    /// # Errors
    ///
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.connections + self.idle == 0 {
            return Err(
                "there is no connection to open: -c and --idle are both 0; give one of them, as in -c 50".to_owned()
            );
        }
        if self.by_greeting && matches!(self.address, Address::Udp(_)) {
            return Err(format!(
                "--by-greeting: a greeting is sent on a connection, and {} has none: leave it out, or load a stream, as in \
                 127.0.0.1:7777",
                self.address
            ));
        }
        let for_messages = [
            ("--rate", self.rate.is_some()),
            ("--find-rate", self.find_rate.is_some()),
            ("--messages", self.messages.is_some()),
            ("--reconnect", self.reconnect.is_some()),
        ];
        if let Some((option, _)) = for_messages.into_iter().find(|(_, given)| self.connections == 0 && *given) {
            return Err(format!(
                "{option} is about messages, and with -c 0 there is no connection that carries any: leave it out, or give \
                 -c at least 1"
            ));
        }
        if let Some(criterion) = &self.find_rate {
            criterion.check_search()?;
            self.check_criterion(criterion).map_err(|text| format!("--find-rate {criterion}: {text}"))?;
        }
        if let Some((rate, duration)) = self.rate.filter(|_| self.find_rate.is_none()).zip(self.length()) {
            let schedule = Schedule::new(0, rate);
            let (from, to) = (nanos(self.warm_up), nanos(self.warm_up + duration));
            if schedule.count_before(to) == schedule.count_before(from) {
                return Err(format!(
                    "at {rate} messages/s none is due in the {} that are measured after --warm-up {}: measure for longer \
                     (--duration)",
                    humantime::format_duration(duration),
                    humantime::format_duration(self.warm_up)
                ));
            }
        }
        Ok(())
    }

    /// The longest that the measured window may be.
    pub fn length(&self) -> Option<Duration> {
        let unlimited = self.messages.is_some() || self.find_rate.is_some();
        self.duration.or((!unlimited).then_some(DURATION))
    }

    /// Which of a name's addresses to dial.
    pub fn family(&self) -> Family {
        match (self.ipv4, self.ipv6) {
            (true, _) => Family::V4,
            (_, true) => Family::V6,
            _ => Family::Any,
        }
    }

    /// Whether messages are due by a schedule.
    pub(super) fn is_open_loop(&self) -> bool {
        self.rate.is_some() || self.find_rate.is_some()
    }

    /// What a run's file says of it.
    pub(super) fn settings(&self) -> Settings {
        let sources = self.sources.iter().flat_map(|sources| sources.addresses());
        Settings {
            address: self.address.to_string(),
            connections: self.connections as u64,
            idle: self.idle as u64,
            connect_rate: self.connect_rate,
            smallest: self.size.0,
            largest: self.size.1,
            depth: self.depth,
            rate: self.rate,
            duration: self.length().map(|duration| duration.as_secs_f64()),
            messages: self.messages,
            warm_up: self.warm_up.as_secs_f64(),
            reconnect: self.reconnect,
            sources: sources.map(ToString::to_string).collect(),
            timeout: self.timeout.as_secs_f64(),
            seed: self.seed,
            busy_poll: self.busy_poll.as_secs_f64(),
        }
    }
}

#[cfg(test)]
impl Config {
    /// What these options mean.
    pub fn of_flags(flags: &str) -> Self {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            config: Config,
        }
        <Alone as clap::Parser>::parse_from(flags.split_whitespace()).config
    }
}
