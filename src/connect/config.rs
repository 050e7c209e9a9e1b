//! What the line client is to do: its options, declared once.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::time::Duration;

use crate::reactor::address::{self, Address};
use crate::values;

/// The options of `connect`.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Whom to connect to: HOST:PORT or [IPV6]:PORT; udp:HOST:PORT sends each line as a datagram; or unix:PATH. Of a
    /// name with several addresses the first that answers is taken
    #[arg(value_name = "ADDR", default_value = address::DEFAULT)]
    pub address: Address,

    /// Send the words bare, without their newlines, each after the echo of the one before; a newline is printed after
    /// each echo
    #[arg(help_heading = "Input and output", long)]
    pub no_newline: bool,

    /// Leave after sending the line WORD and receiving its echo
    #[arg(help_heading = "Stop when", long, value_name = "WORD", value_parser = values::word)]
    pub terminator: Option<String>,

    /// Succeed as soon as TEXT has come back, and fail if the connection ends, or --timeout passes, before
    #[arg(help_heading = "Stop when", long, value_name = "TEXT", value_parser = values::expectation)]
    pub expect: Option<String>,

    /// Print what comes back as a hex dump: the position, up to 16 bytes, and the same as text. Each piece that arrives
    /// begins a line
    #[arg(help_heading = "Input and output", long)]
    pub hex: bool,

    /// Fail when a reply is due and nothing has come for DUR, such as 500ms or 10s; over UDP, give a datagram up after
    /// that. By default wait as long as the connection lasts; with --expect 10s, over UDP 1s
    #[arg(help_heading = "Stop when", long, value_name = "DUR", value_parser = values::positive_duration)]
    pub timeout: Option<Duration>,

    /// Give up when there is no connection after DUR, in which the name is looked up and its addresses are tried
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
