//! What a server is to do: the options of `echoloop serve`, each declared once.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::access::AccessOptions;
use super::fault::FaultOptions;
use crate::reactor::SocketOptions;
use crate::reactor::address::{Address, AddressError};
use crate::values;

/// What a server is to do.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Where to listen: HOST:PORT or [IPV6]:PORT, with udp: before it for datagrams, or unix:PATH for a socket file
    /// (unix:@NAME is an abstract name, on Linux). Port 0 takes a free one; a name means all its addresses that this
    /// machine has; [::] is IPv6 alone [default: 127.0.0.1:7777, or the sockets that systemd hands over]
    #[arg(value_name = "ADDR")]
    pub addresses: Vec<Address>,

    /// Close a connection after echoing a message equal to WORD
    #[arg(help_heading = "Stop when", long, value_name = "WORD", value_parser = values::word)]
    pub terminator: Option<String>,

    /// Close a connection after echoing N messages; the rest of what was read with the last one is not echoed
    #[arg(help_heading = "Stop when", long, value_name = "N", value_parser = values::messages)]
    pub message_limit: Option<u64>,

    /// Stop listening after N connections, and exit 0 when the last has closed
    #[arg(help_heading = "Stop when", long, value_name = "N", value_parser = values::messages)]
    pub accept_limit: Option<u64>,

    /// One connection, one message: --accept-limit 1 --message-limit 1
    #[arg(help_heading = "Stop when", long, conflicts_with_all = ["accept_limit", "message_limit"])]
    pub once: bool,

    /// Print each message with its peer's address on standard output. Control characters and bytes that are not UTF-8 are
    /// escaped; a line that ends in a single \ is continued. What a slow reader leaves unread is left out, beyond 2 MiB
    #[arg(help_heading = "Output", long)]
    pub print: bool,

    /// Serve at most N connections at once; further connections wait in the backlog until there is room. By default what
    /// the limit on open files allows, after it has been raised as far as it goes
    #[arg(help_heading = "Limits", long, value_name = "N", value_parser = values::at_least_one)]
    pub max_connections: Option<usize>,

    /// Close connections on which nothing moved in either direction for DUR, such as 30s or 5m. Bytes that a slow reader
    /// takes count; a peer that takes nothing of what waits for it is stalled, and closed too
    #[arg(help_heading = "Limits", long, value_name = "DUR", value_parser = values::positive_duration)]
    pub idle_timeout: Option<Duration>,

    /// Go on accepting and serving for DUR after the first signal, while /readyz says 503 already: a balancer or Kubernetes
    /// has time to send nobody here any more
    #[arg(help_heading = "Stop when", long, value_name = "DUR", default_value = "0s", value_parser = values::duration)]
    pub stop_delay: Duration,

    /// How long a stop may take to send what is owed, after the stop delay
    #[arg(help_heading = "Stop when", long, value_name = "DUR", default_value = "5s", value_parser = values::duration)]
    pub drain_timeout: Duration,

    /// Before sleeping in the poll, spin for up to DUR, such as 50us: lower latency, for a busy core. Only while events
    /// come as close as that
    #[arg(help_heading = "Sockets", long, value_name = "DUR", default_value = "0s", value_parser = values::duration)]
    pub busy_poll: Duration,

    /// Log counters every DUR
    #[arg(help_heading = "Output", long, value_name = "DUR", value_parser = values::positive_duration)]
    pub stats_interval: Option<Duration>,

    /// Answer over HTTP: / is a live page of the event loop, /metrics for Prometheus, /healthz for health checks. A port
    /// alone is on 127.0.0.1; anybody who can connect can look. May be given several times
    #[arg(help_heading = "Output", long, value_name = "ADDR", value_parser = http_address)]
    pub http: Vec<Address>,

    /// The sockets' options.
    #[command(flatten)]
    pub sockets: SocketOptions,

    /// Access control.
    #[command(flatten)]
    pub access: AccessOptions,

    /// Misbehaviour, and who answered.
    #[command(flatten)]
    pub faults: FaultOptions,
}

fn http_address(text: &str) -> Result<Address, String> {
    match text.parse().map_err(|error: AddressError| error.to_string())? {
        Address::Udp(_) => Err("HTTP is not spoken over UDP here".to_owned()),
        address => Ok(address),
    }
}

impl Config {
    /// Connections after which it stops listening.
    pub fn accept_limit(&self) -> Option<u64> {
        if self.once { Some(1) } else { self.accept_limit }
    }

    /// Messages after which it closes a connection.
    pub fn message_limit(&self) -> Option<u64> {
        if self.once { Some(1) } else { self.message_limit }
    }
}

impl Default for Config {
    /// What no option at all means: echo to everybody, without limits.
    fn default() -> Self {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            config: Config,
        }
        let matches = Alone::command().get_matches_from(["serve"]);
        Alone::from_arg_matches(&matches).expect("every option has a default").config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_addresses_are_understood() {
        for (text, address) in [("9090", "127.0.0.1:9090"), ("[::]:80", "[::]:80"), ("unix:/x", "unix:/x")] {
            assert_eq!(http_address(text).unwrap().to_string(), address);
        }
        for mistake in ["", "99999", ":80", "http://127.0.0.1:80", "udp:127.0.0.1:80", "localhost"] {
            assert!(http_address(mistake).is_err(), "{mistake}");
        }
    }
}
