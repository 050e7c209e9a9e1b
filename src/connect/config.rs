//! What the line client is to do: its options, declared once.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::time::Duration;

use crate::reactor::address::{self, Address};
use crate::{destination, values};

/// The options of `connect`.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Connect to HOST:PORT, udp:HOST:PORT or unix:PATH. PORT alone is on 127.0.0.1; an IPv6 address is in brackets, as
    /// in [::1]:7777; with udp: each line is a datagram. If a name has several addresses, the first one that answers is
    /// taken
    #[arg(value_name = "ADDR", default_value = address::DEFAULT, value_parser = destination::destination)]
    pub address: Address,

    /// Send lines without their newlines. Each is sent once the previous one has been echoed; a newline is printed
    /// after each echo
    #[arg(help_heading = "Input and output", long)]
    pub no_newline: bool,

    /// Exit after the line WORD and its echo
    #[arg(help_heading = "Stop when", long, value_name = "WORD", value_parser = values::word)]
    pub terminator: Option<String>,

    /// Exit 0 as soon as TEXT has come back. It is a failure if the connection ends, or --timeout passes, before that;
    /// other text does not put that off
    #[arg(help_heading = "Stop when", long, value_name = "TEXT", value_parser = values::expectation)]
    pub expect: Option<String>,

    /// Print what comes back as a hex dump. Each line has the position, up to 16 bytes, and the same as text; each
    /// piece that arrives begins a line
    #[arg(help_heading = "Input and output", long)]
    pub hex: bool,

    /// Fail if a reply is due and nothing comes for DUR. Over UDP, give up on a datagram after that. By default there
    /// is no limit, but for 10s with --expect and 1s over UDP
    #[arg(help_heading = "Stop when", long, value_name = "DUR", value_parser = values::positive_duration)]
    pub timeout: Option<Duration>,

    /// Give up connecting after DUR. That includes looking up the name and trying its addresses
    #[arg(help_heading = "Stop when", long, value_name = "DUR", default_value = "10s", value_parser = values::positive_duration)]
    pub connect_timeout: Duration,
}

/// How long `--expect` waits by default.
const EXPECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Config {
    /// A client of `address` with no option given.
    pub fn new(address: Address) -> Self {
        Config {
            address,
            no_newline: false,
            terminator: None,
            expect: None,
            hex: false,
            timeout: None,
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// How long a connection may be silent while a reply is due.
    pub(super) fn reply_timeout(&self) -> Option<Duration> {
        self.timeout.or(self.expect.as_ref().map(|_| EXPECT_TIMEOUT))
    }

    /// Whether `line` is the one to leave after.
    pub(super) fn is_terminator(&self, line: &[u8]) -> bool {
        self.terminator.as_ref().is_some_and(|word| word.as_bytes() == line)
    }
}
