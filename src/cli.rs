//! The command line: flags in, configurations out.
//!
//! Nothing is done here, and no default is decided here that the configurations do not decide already.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::time::Duration;

use bytesize::ByteSize;
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::address::{self, Address};
use crate::{connect, serve};

/// An echo server on one event loop, for very many connections, and its line client.
///
/// What a peer sends comes back to it, byte for byte, until it closes its side.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Try it in two terminals:
  echoloop serve                 echoes on 127.0.0.1:7777 until Ctrl-C
  echoloop connect               lines you type go out, what comes back is printed

`echoloop help serve` explains every option.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Log more: -v each connection, -vv every step of the event loop
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Log warnings and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Cli {
    /// How much to log: see [`crate::logging::init`].
    pub fn verbosity(&self) -> i16 {
        if self.quiet { -1 } else { self.verbose.into() }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Echo what is received on one or several addresses
    Serve(Box<Serve>),
    /// Send lines from standard input and print what comes back
    Connect(Connect),
}

/// The options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Signals: SIGINT and SIGTERM stop accepting, send what is owed, close, log a summary and exit 0;
a second one ends at once (exit 130 or 143).

A message, for --terminator, --message-limit and --print, ends at LF or CRLF, or where the socket
runs dry: so a word sent without a newline is a message too. Without these bytes are not looked at.

Examples:
  echoloop serve                                  this machine only
  echoloop serve 0.0.0.0:7777 '[::]:7777'         everybody, IPv4 and IPv6
  echoloop serve --once                           one connection, one message
  echoloop serve --accept-limit 1 --terminator bye   one connection, until it says bye
  echoloop serve --terminator bye --print         anybody, each until it says bye
  echoloop serve -vv --send-buffer 4KiB           watch partial sends being resumed")]
pub struct Serve {
    /// Where to listen: HOST:PORT or [IPV6]:PORT. Port 0 takes a free one; a name means all its addresses; [::] is
    /// IPv6 alone
    #[arg(value_name = "ADDR", default_value = address::DEFAULT)]
    addresses: Vec<Address>,

    /// Close a connection after echoing a message equal to WORD
    #[arg(long, value_name = "WORD", value_parser = word)]
    terminator: Option<String>,

    /// Close a connection after echoing N messages; the rest of what was read with the last one is not echoed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    message_limit: Option<u64>,

    /// Stop listening after N connections, and exit 0 when the last has closed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    accept_limit: Option<u64>,

    /// One connection, one message: --accept-limit 1 --message-limit 1
    #[arg(long, conflicts_with_all = ["accept_limit", "message_limit"])]
    once: bool,

    /// Print each message with its peer's address on standard output. Control characters and bytes that are not
    /// UTF-8 are escaped; a line that ends in a single \ is continued
    #[arg(long)]
    print: bool,

    /// Serve at most N connections at once; who comes beyond waits in the backlog until there is room. By default
    /// what the limit on open files allows, after it has been raised as far as it goes
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_connections: Option<usize>,

    /// Close connections on which nothing moved in either direction for DUR, such as 30s or 5m. Bytes that a slow
    /// reader takes count; a peer that takes nothing of what waits for it is stalled, and closed too
    #[arg(long, value_name = "DUR", value_parser = positive_duration)]
    idle_timeout: Option<Duration>,

    /// How long a stop may take to send what is owed
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = duration)]
    drain_timeout: Duration,

    /// Connections that the kernel keeps waiting until they are accepted. A short backlog makes bursts of connects
    /// crawl: what does not fit is dropped, and tries again after a second
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    backlog: u32,

    /// Receive buffer of each connection in the kernel, such as 64KiB (SO_RCVBUF); by default the kernel tunes it
    #[arg(long, value_name = "SIZE", value_parser = buffer_size)]
    recv_buffer: Option<usize>,

    /// Send buffer of each connection in the kernel (SO_SNDBUF); by default the kernel tunes it. A tiny one, 4KiB,
    /// makes partial sends visible at -vv
    #[arg(long, value_name = "SIZE", value_parser = buffer_size)]
    send_buffer: Option<usize>,

    /// Leave Nagle's algorithm on: small sends wait for the acknowledgement of earlier ones. By default TCP_NODELAY
    /// is set
    #[arg(long)]
    nagle: bool,

    /// Before sleeping in the poll, spin so long, such as 50us: lower latency, for a busy core
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = duration)]
    busy_poll: Duration,

    /// Log a line of counters so often
    #[arg(long, value_name = "DUR", value_parser = positive_duration)]
    stats_interval: Option<Duration>,
}

impl From<Serve> for serve::Config {
    fn from(flags: Serve) -> Self {
        serve::Config {
            addresses: flags.addresses,
            terminator: flags.terminator.map(String::into_bytes),
            message_limit: if flags.once { Some(1) } else { flags.message_limit },
            accept_limit: if flags.once { Some(1) } else { flags.accept_limit },
            print: flags.print,
            max_connections: flags.max_connections,
            idle_timeout: flags.idle_timeout,
            drain_timeout: flags.drain_timeout,
            sockets: serve::SocketOptions {
                backlog: flags.backlog,
                recv_buffer: flags.recv_buffer,
                send_buffer: flags.send_buffer,
                nagle: flags.nagle,
            },
            busy_poll: flags.busy_poll,
            stats_interval: flags.stats_interval,
        }
    }
}

/// The options of `connect`.
#[derive(Debug, Args)]
#[command(after_help = "\
The end of the input closes the sending side; what is still owed is waited for. So
  echoloop connect < file > copy
makes a copy of a file of any size. Exits 1 if nobody listens, or if the connection ends before
everything has come back.")]
pub struct Connect {
    /// Whom to connect to: HOST:PORT or [IPV6]:PORT
    #[arg(value_name = "ADDR", default_value = address::DEFAULT)]
    address: Address,

    /// Send the words bare, without their newlines, each after the echo of the one before; a newline is printed after
    /// each echo
    #[arg(long)]
    no_newline: bool,

    /// Leave after sending the line WORD and receiving its echo
    #[arg(long, value_name = "WORD", value_parser = word)]
    terminator: Option<String>,
}

impl From<Connect> for connect::Config {
    fn from(flags: Connect) -> Self {
        connect::Config {
            address: flags.address,
            newline: !flags.no_newline,
            terminator: flags.terminator.map(String::into_bytes),
        }
    }
}

/// The longest duration taken: longer ones are a slip of the pen, and overflow sums with the clock's time.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}: write it as in 250ms, 10s, 5m"))?;
    if duration > LONGEST {
        return Err("more than a year".to_owned());
    }
    Ok(duration)
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

fn buffer_size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}: write it as in 4096, 64KiB, 1MiB"))?;
    match size.as_u64() {
        0 => Err("it must be more than nothing".to_owned()),
        // SO_SNDBUF and SO_RCVBUF are C ints, and the kernel doubles them (socket(7)).
        bytes if bytes > i32::MAX as u64 / 2 => Err("more than 1 GiB".to_owned()),
        bytes => Ok(bytes as usize),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty message is no word".to_owned());
    }
    if text.contains(['\r', '\n']) {
        return Err("a message ends at a newline, so it has none in it".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_configurations() {
        let Command::Serve(flags) = Cli::parse_from(["echoloop", "serve"]).command else { unreachable!() };
        let parsed = serve::Config::from(*flags);
        let default = serve::Config { addresses: vec![address::DEFAULT.parse().unwrap()], ..Default::default() };
        assert_eq!(format!("{parsed:?}"), format!("{default:?}"));
    }

    #[test]
    fn units_are_understood_and_mistakes_named() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(buffer_size("64KiB"), Ok(65536));
        assert_eq!(buffer_size("4096"), Ok(4096));
        for (flag, value) in [
            ("--idle-timeout", "0s"),
            ("--idle-timeout", "soon"),
            ("--drain-timeout", "9000years"),
            ("--send-buffer", "0"),
            ("--send-buffer", "64 sheep"),
            ("--recv-buffer", "3GiB"),
            ("--terminator", ""),
            ("--terminator", "a\nb"),
            ("--max-connections", "0"),
            ("--max-connections", "-1"),
            ("--message-limit", "0"),
            ("--accept-limit", "none"),
            ("--backlog", "0"),
        ] {
            let flag_and_value = format!("{flag}={value}");
            let error = Cli::try_parse_from(["echoloop", "serve", &flag_and_value]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(flag), "{text}");
            assert!(text.contains(&format!("'{value}'")) || value.is_empty(), "{text}");
        }
    }
}
