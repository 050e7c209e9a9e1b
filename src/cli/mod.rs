//! The command line: flags in, configurations out.
//!
//! Nothing is done here, and no default is decided here that the configurations do not decide already.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::Criterion;
use crate::bench::report::Outputs;
use crate::logging::Format;
use crate::{bench, check, connect, serve, stdio};

/// An echo server on one event loop, for very many connections, a line client, and a load generator that tells the truth.
///
/// What a peer sends comes back to it, byte for byte, until it closes its side.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Try it in two terminals:
  echoloop serve                 echoes on 127.0.0.1:7777 until Ctrl-C
  echoloop connect               lines you type go out, what comes back is printed
  echoloop bench                 50 connections for 10 seconds, every byte verified

`echoloop help serve` explains every option. Each option can also be given as a variable of the environment: \
ECHOLOOP_IDLE_TIMEOUT=1m is --idle-timeout 1m, ECHOLOOP_PRINT=1 is --print; the command line wins.")]
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

    /// How the log is written
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,
}

impl Cli {
    /// The command line of this process, and its environment. Mistakes in them, and requests for help, end the process.
    pub fn from_command_line() -> Self {
        let matches = with_environment(Cli::command()).try_get_matches().unwrap_or_else(|error| leave(&error));
        let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| leave(&error));
        if let Command::Bench(flags) = &cli.command
            && let Err(text) = flags.check()
        {
            Cli::command().error(ErrorKind::ValueValidation, text).exit();
        }
        cli
    }

    /// How much to log: see [`crate::logging::init`].
    pub fn verbosity(&self) -> i16 {
        if self.quiet { -1 } else { self.verbose.into() }
    }

    /// How to write the log.
    pub fn log_format(&self) -> Format {
        self.log_format
    }
}

/// Ends the process with what clap has to say: a mistake, on standard error, or what was asked for, as a result.
fn leave(error: &clap::Error) -> ! {
    if error.use_stderr() {
        error.exit();
    }
    let text = error.render();
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let text = if colours { text.ansi().to_string() } else { text.to_string() };
    if let Err(error) = stdio::print(&text) {
        eprintln!("echoloop: {error}");
        std::process::exit(1);
    }
    std::process::exit(error.exit_code());
}

/// The command, and every option of it also from a variable of the environment: `ECHOLOOP_`, and the option's name.
fn with_environment(command: clap::Command) -> clap::Command {
    let named = |arg: Arg| match arg.get_long() {
        Some(long) if !["help", "version"].contains(&long) => {
            let variable = format!("ECHOLOOP_{}", long.replace('-', "_").to_uppercase());
            let arg = arg.env(variable).hide_env(true);
            // A flag in the environment is on unless its value says no.
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                arg.value_parser(FalseyValueParser::new())
            } else {
                arg
            }
        }
        _ => arg,
    };
    command.mut_args(named).mut_subcommands(with_environment)
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Echo what is received on one or several addresses
    Serve(Box<serve::Config>),
    /// Send lines from standard input and print what comes back
    Connect(connect::Config),
    /// Load an echo service, verify every byte that comes back, and report honest latency
    Bench(Box<Bench>),
    /// Compare runs of `bench`, or add up those that several machines made of one test
    Report(Report),
    /// Grade any echo service, from outside: each promise of an echo is tried, and every byte verified
    Check(Box<check::Config>),
    /// Print what a shell needs to complete commands and options: source it, or put it where the shell looks for such
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page: `echoloop man | man -l -`
    Man(Man),
}

/// The options of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The command that the page is about; without, the program
    #[arg(value_name = "COMMAND")]
    about: Option<String>,

    /// Write the pages of the program and of all its commands into DIR instead
    #[arg(long, value_name = "DIR", conflicts_with = "about")]
    dir: Option<PathBuf>,
}

/// Prints what `shell` needs to complete this program's commands and options.
///
/// # Errors
///
/// If standard output cannot be written to.
pub fn print_completions(shell: Shell) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "echoloop", &mut text);
    stdio::print(&text)
}

impl Man {
    /// Prints or writes the pages.
    ///
    /// # Errors
    ///
    /// If there is no such command, or the output cannot be written to.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        if let Some(directory) = &self.dir {
            std::fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(command, directory))
                .with_context(|| format!("cannot write to {}", directory.display()))?;
            return Ok(());
        }
        let command = match &self.about {
            None => command,
            Some(name) => {
                command.find_subcommand(name).cloned().with_context(|| format!("there is no command {name:?}"))?
            }
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text)?;
        Ok(stdio::print(&text)?)
    }
}

/// The options of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Closed loop (the usual): each connection has --depth messages in flight and sends the next one when a reply has \
come. That finds what a server can do, and hides how it answers those who do not wait.
Open loop (--rate): messages are due by a fixed schedule. The response time counts from when a message was due, the \
service time from when it was sent; a server that stalls shows in the first.

Exit codes: 0; 1 for wrong bytes, failed connections, replies that did not come in time, no reply or no connection at \
all; 2 for a mistake on the command line; 3 if a --fail-if holds or had no data, the rate of --rate was not kept, or the \
criterion of --find-rate held at no rate.

Examples:
  echoloop bench                                       50 connections, 64 bytes, 10 seconds
  echoloop bench -c 1000 -d 32 -t 1m                   pipelining
  echoloop bench -c 100 --rate 50000 --html run.html   an open loop, and a page to look at
  echoloop bench --find-rate 'p99<5ms'                 how much can it take?
  echoloop bench -c 10 --idle 10000 --watch-pid 4711   what do idle connections cost?
  echoloop bench --fail-if 'p99>2ms' --fail-if 'rate<100000' -q   in CI")]
pub struct Bench {
    #[command(flatten)]
    config: bench::Config,

    /// Exit 3 if this holds: 'p99>2ms', 'rate<100000', 'errors>0'. There are p50, p99.9 and the like, mean, max, rate,
    /// errors, mismatches, missed, lost and connections; with <, <=, > and >=. May be given several times
    #[arg(long, value_name = "EXPR")]
    fail_if: Vec<Criterion>,

    /// Write the run to FILE, for `echoloop report`; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with charts to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write the response times of each second to FILE, as an HdrHistogram interval log
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,

    /// Write the distribution of response times to FILE, in milliseconds, as HdrHistogram's plotters read it
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
}

impl Bench {
    /// Refuses options that mean nothing together.
    fn check(&self) -> Result<(), String> {
        self.config.check()?;
        let check = |criterion: &Criterion| {
            self.config.check_criterion(criterion).map_err(|text| format!("--fail-if {criterion}: {text}"))
        };
        self.fail_if.iter().try_for_each(check)
    }

    /// What load to make.
    pub fn config(&self) -> &bench::Config {
        &self.config
    }

    /// Where to write what came of the run.
    pub fn outputs(&self) -> Outputs {
        Outputs { json: self.json.clone(), html: self.html.clone(), hdr: self.hdr.clone(), hgrm: self.hgrm.clone() }
    }

    /// What must not be so.
    pub fn fail_if(&self) -> &[Criterion] {
        &self.fail_if
    }
}

/// The options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echoloop report before.json after.json --html both.html     side by side, with ratios to the first
  echoloop report --merge node-*.json --json all.json         one test, made by several machines")]
pub struct Report {
    /// Runs, as `echoloop bench --json` wrote them; - is standard input. A file may hold several, among lines of a log
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    pub files: Vec<PathBuf>,

    /// Add up runs of one test that several processes or machines made at the same time. They are aligned by their times;
    /// counts are added, and so are histograms, which makes the percentiles right. A run that is there twice, and runs
    /// that never overlapped, are refused
    #[arg(long)]
    pub merge: bool,

    /// What to call the merged run; by default its runs are named
    #[arg(long, value_name = "TEXT", requires = "merge")]
    pub name: Option<String>,

    /// Write the merged run to FILE
    #[arg(long, value_name = "FILE", requires = "merge")]
    pub json: Option<PathBuf>,

    /// Write a page with charts of all runs to FILE
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Print the JSON Schema of the files instead
    #[arg(long, exclusive = true)]
    pub schema: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_variable_of_its_own_and_no_other() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                let expected = arg
                    .get_long()
                    .filter(|long| !["help", "version"].contains(long))
                    .map(|long| format!("ECHOLOOP_{}", long.to_uppercase().replace('-', "_")));
                assert_eq!(arg.get_env().map(|name| name.to_str().unwrap().to_owned()), expected, "{arg}");
            }
            command.get_subcommands().for_each(check);
        }
        check(&with_environment(Cli::command()));
    }

    #[test]
    fn defaults_are_the_configurations() {
        let Command::Serve(flags) = Cli::parse_from(["echoloop", "serve"]).command else { unreachable!() };
        let parsed = *flags;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", serve::Config::default()));
    }

    #[test]
    fn a_mistake_names_the_option_and_the_value() {
        for (flag, value) in [
            ("--allow", "10.0.0.0/33"),
            ("--deny", "everybody"),
            ("--deny", "::ffff:10.0.0.0/64"),
            ("--proxy-from", "10.0.0.0/8/8"),
            ("--ipv6-prefix", "129"),
            ("--max-per-source", "0"),
            ("--accept-rate", "0"),
            ("--datagram-rate", "-1"),
            ("--http", "70000"),
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

    const SERVE: [&str; 20] = [
        "--http",
        "--allow",
        "--deny",
        "--max-per-source",
        "--ipv6-prefix",
        "--proxy-from",
        "--accept-rate",
        "--datagram-rate",
        "--terminator",
        "--message-limit",
        "--accept-limit",
        "--max-connections",
        "--idle-timeout",
        "--drain-timeout",
        "--backlog",
        "--recv-buffer",
        "--send-buffer",
        "--busy-poll",
        "--stats-interval",
        "--",
    ];

    const BENCH: [&str; 18] = [
        "--start-at",
        "--connections",
        "--idle",
        "--connect-rate",
        "--size",
        "--depth",
        "--rate",
        "--duration",
        "--messages",
        "--warm-up",
        "--find-rate",
        "--reconnect",
        "--source",
        "--timeout",
        "--seed",
        "--busy-poll",
        "--watch-pid",
        "--fail-if",
    ];

    proptest! {
        #[test]
        fn whatever_is_given_to_a_flag_is_taken_or_named(
            (command, flag) in prop::sample::select(
                [SERVE.map(|flag| ("serve", flag)).as_slice(), BENCH.map(|flag| ("bench", flag)).as_slice()].concat()
            ),
            value in "\\PC+|-?[0-9]{1,25}(\\.[0-9]{1,3})?(|e[0-9]{1,4}|s|ms|years|k|KiB|EiB)|[0-9]{1,9}\\.\\.[0-9]{1,12}",
        ) {
            let argument = if flag == "--" { value.clone() } else { format!("{flag}={value}") };
            prop_assume!(flag != "--" || !value.starts_with('-'));
            if let Err(error) = Cli::try_parse_from(["echoloop", command, &argument]) {
                let text = error.to_string();
                prop_assert!(text.contains(&format!("'{value}'")), "{value:?}: {text}");
                prop_assert!(text.contains(if flag == "--" { "ADDR" } else { flag }), "{text}");
            }
        }

    }
}
