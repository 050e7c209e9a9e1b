//! What a server is to do: the options of `echoloop serve`, each declared once.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::access::AccessOptions;
use super::echo::{Echo, SharedPrinter};
use super::fault::FaultOptions;
use crate::reactor::SocketOptions;
use crate::reactor::address::{Address, AddressError};
use crate::values;

/// What a server is to do.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Listen on HOST:PORT, udp:HOST:PORT or unix:PATH. PORT alone is on 127.0.0.1; an IPv6 address is in brackets, as
    /// in [::1]:7777, and [::] does not include IPv4. Port 0 picks a free port; a host name stands for all of its
    /// addresses that this machine has; unix:@NAME is an abstract name (Linux) [default: 127.0.0.1:7777, or the sockets
    /// that systemd passes]
    #[arg(value_name = "ADDR")]
    pub addresses: Vec<Address>,

    /// Close a connection after echoing the message WORD
    #[arg(help_heading = "Stop when", long, value_name = "WORD", value_parser = values::word)]
    pub terminator: Option<String>,

    /// Close a connection after echoing N messages. What was read together with the last of them is not echoed
    #[arg(help_heading = "Stop when", long, value_name = "N", value_parser = values::messages)]
    pub message_limit: Option<u64>,

    /// Stop listening after N connections. The exit code is 0 when the last of them has closed
    #[arg(help_heading = "Stop when", long, value_name = "N", value_parser = values::messages)]
    pub accept_limit: Option<u64>,

    /// Serve one message on one connection, then exit. Short for --accept-limit 1 --message-limit 1
    #[arg(help_heading = "Stop when", long, conflicts_with_all = ["accept_limit", "message_limit"])]
    pub once: bool,

    /// Print each message with its peer's address. Control characters and bytes that are not UTF-8 are escaped; a line that
    /// ends in a single \ is continued. Beyond 2 MiB, what a slow reader leaves unread is left out. With =hex print a hex dump
    /// of all that comes instead, 16 bytes a line
    #[arg(help_heading = "Output", long, value_name = "FORMAT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "text", value_parser = Print::parse)]
    pub print: Option<Print>,

    /// Serve at most N connections at once. Further connections wait in the backlog until there is room. By default, as
    /// many as the limit on open files allows once it has been raised to its maximum
    #[arg(help_heading = "Limits", long, value_name = "N", value_parser = values::at_least_one)]
    pub max_connections: Option<usize>,

    /// Close connections that are idle for DUR, like 5m. Bytes in either direction count, and so do bytes that a slow
    /// reader takes; a peer that takes nothing of what waits for it is stalled, and is closed too
    #[arg(help_heading = "Limits", long, value_name = "DUR", value_parser = values::positive_duration)]
    pub idle_timeout: Option<Duration>,

    /// Keep accepting and serving for DUR after the first signal, while /readyz already answers 503. This gives a load
    /// balancer or Kubernetes time to send new connections elsewhere
    #[arg(help_heading = "Stop when", long, value_name = "DUR", default_value = "0s", value_parser = values::duration)]
    pub stop_delay: Duration,

    /// Finish within DUR when stopping. What has been received is echoed first, as far as peers take it in that time,
    /// which begins after --stop-delay
    #[arg(help_heading = "Stop when", long, value_name = "DUR", default_value = "5s", value_parser = values::duration)]
    pub drain_timeout: Duration,

    /// Spin for up to DUR, such as 50us, before sleeping in the poll. Lower latency at the price of a busy core; only
    /// while events come in such quick succession
    #[arg(help_heading = "Sockets", long, value_name = "DUR", default_value = "0s", value_parser = values::duration)]
    pub busy_poll: Duration,

    /// Log the counters every DUR
    #[arg(help_heading = "Output", long, value_name = "DUR", value_parser = values::positive_duration)]
    pub stats_interval: Option<Duration>,

    /// Serve metrics and a live page over HTTP. The page is /, /metrics is for Prometheus, /healthz for health
    /// checks. PORT alone is on 127.0.0.1; anyone who can connect can see them. May be given several times
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
    values::one_of_several(text, |text| {
        if text.starts_with("udp:") {
            return Err("HTTP is not spoken over UDP here: write it as in 127.0.0.1:9090".to_owned());
        }
        text.parse().map_err(|error: AddressError| match error {
            // The port in the example is the other server's.
            AddressError::NoPort(_) | AddressError::Port(_) | AddressError::Host(_) => {
                error.to_string().replace(":7777", ":9090")
            }
            error => error.to_string(),
        })
    })
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

/// How to print what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Print {
    /// Not at all: for a variable that says no.
    Nothing,
    /// As messages.
    Text,
    /// As a hex dump.
    Hex,
}

impl Print {
    fn parse(text: &str) -> Result<Self, String> {
        match text.to_lowercase().as_str() {
            "hex" => Ok(Print::Hex),
            "text" | "1" | "true" | "yes" | "on" | "t" | "y" => Ok(Print::Text),
            "0" | "false" | "no" | "off" | "f" | "n" => Ok(Print::Nothing),
            _ => Err("there are text and hex: write it as in text, hex".to_owned()),
        }
    }
}

impl Config {
    /// The echo that is asked for; messages are printed with `printer`.
    pub(super) fn echo(&self, printer: Option<SharedPrinter>) -> Echo {
        let terminator = self.terminator.as_deref().map(str::as_bytes);
        Echo::with(terminator, self.message_limit(), printer, self.prints_hex(), &self.access)
    }

    /// Whether what comes is printed as a hex dump.
    pub(super) fn prints_hex(&self) -> bool {
        self.print == Some(Print::Hex)
    }

    /// Whether what comes is printed.
    pub(super) fn prints(&self) -> bool {
        self.print.is_some_and(|print| print != Print::Nothing)
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
        for mistake in ["", "99999", ":80", "http://127.0.0.1:80", "udp:127.0.0.1:80", "localhost", "9090,9091"] {
            assert!(http_address(mistake).is_err(), "{mistake}");
        }
        assert!(http_address("localhost").unwrap_err().ends_with("as in localhost:9090"));
    }
}
