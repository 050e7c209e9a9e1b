//! The command line: flags in, configurations out.
//!
//! Nothing is done here, and no default is decided here that the configurations do not decide already.

#![allow(rustdoc::broken_intra_doc_links, reason = "the options' documentation is their help, in plain text")]

mod advice;
mod environment;
mod manual;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::Criterion;
use crate::bench::report::Outputs;
use crate::logging::Format;
use crate::{bench, check, connect, serve, stdio};
use environment::Environment;
use manual::Help;

/// An echo server on one event loop, a line client, a load generator, and a grader for echo services.
///
/// What a peer sends comes back to it, byte for byte, until it closes its side.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,

    /// Log more: -v connections, -vv event loop. The latter is every step that it makes
    #[arg(help_heading = "Logging", short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Log only warnings and errors
    #[arg(help_heading = "Logging", short, long, global = true)]
    quiet: bool,

    /// Format of the log
    #[arg(help_heading = "Logging", long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,

    /// Print help: -h is a page, --help has everything
    #[arg(help_heading = "Help", short, long, global = true, action = ArgAction::Help)]
    help: Option<bool>,

    /// Print the version
    #[arg(help_heading = "Help", short = 'V', long, global = true, action = ArgAction::Version)]
    version: Option<bool>,

    #[arg(skip)]
    unknown_variables: Vec<String>,
}

impl Cli {
    /// The command line of this process, and its environment. Mistakes in them, and requests for help, end the process.
    pub fn from_command_line() -> Self {
        let environment = Environment::new(std::env::vars_os());
        let mut line: Vec<OsString> = std::env::args_os().collect();
        let parse = |line: &[OsString]| {
            let command = manual::lay_out(environment.attach(Cli::command(), line), Help::of(line), manual::width());
            let cli = command.try_get_matches_from(line).and_then(|matches| Cli::from_arg_matches(&matches))?;
            match cli.command.check() {
                Ok(()) => Ok(cli),
                Err(text) => Err(Cli::command().error(ErrorKind::ValueValidation, text)),
            }
        };
        let parsed = parse(&line).or_else(|error| {
            let joined = advice::join_negative_values(&Cli::command(), &line);
            if joined == line {
                return Err(error);
            }
            line.clone_from(&joined);
            parse(&joined)
        });
        let mut cli = parsed.unwrap_or_else(|mut error| {
            environment.name_variables(&mut error, &line);
            advice::improve(&mut error, &Cli::command(), &line);
            leave(&error)
        });
        cli.unknown_variables = environment.unknown(&Cli::command());
        cli
    }

    /// Variables of the environment that look like options, and are none.
    pub fn unknown_variables(&self) -> &[String] {
        &self.unknown_variables
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

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Echo what is received on one or more addresses
    Serve(Box<serve::Config>),
    /// Send lines from standard input and print what comes back
    Connect(connect::Config),
    /// Load an echo service, and verify every byte that comes back
    Bench(Box<Bench>),
    /// Compare runs of `bench`, or merge those of several machines
    Report(Report),
    /// Grade any echo service from outside, promise by promise
    Check(Box<check::Config>),
    /// Print completions of commands and options for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page: `echoloop man serve | man -l -`
    Man(Man),
}

impl Command {
    /// Refuses options that mean nothing together.
    fn check(&self) -> Result<(), String> {
        match self {
            Command::Bench(flags) => flags.check(),
            _ => Ok(()),
        }
    }
}

/// What there are manual pages about.
const COMMANDS: [&str; 7] = ["serve", "connect", "bench", "report", "check", "completions", "man"];

/// The options of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Command that the page is about. By default the program
    #[arg(value_name = "COMMAND", value_parser = PossibleValuesParser::new(COMMANDS))]
    about: Option<String>,

    /// Write the pages of all commands into DIR instead
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
        let mut program = Cli::command().disable_help_subcommand(true);
        program.build();
        if let Some(directory) = &self.dir {
            let cannot = || format!("cannot write to {}", directory.display());
            std::fs::create_dir_all(directory).with_context(cannot)?;
            let pages =
                program.get_subcommands().map(|command| (format!("echoloop-{}.1", command.get_name()), command));
            for (file, command) in pages.chain([("echoloop.1".to_owned(), &program)]) {
                std::fs::write(directory.join(file), manual::page(&program, command)).with_context(cannot)?;
            }
            return Ok(());
        }
        let command = self.about.as_ref().and_then(|name| program.find_subcommand(name)).unwrap_or(&program);
        Ok(stdio::print(manual::page(&program, command))?)
    }
}

/// The options of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    config: bench::Config,

    /// Exit with 3 if EXPR holds, such as 'p99>2ms'. Or 'rate<100000', 'errors>0': there are p50, p99.9 and the like,
    /// mean, max, rate, errors, mismatches, missed, lost and connections; with <, <=, > and >=. May be given several
    /// times
    #[arg(help_heading = "Output", long, value_name = "EXPR")]
    fail_if: Vec<Criterion>,

    /// Write the run to FILE, for `echoloop report`. - is standard output
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with charts to FILE
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write the response times of each second to FILE, as an HdrHistogram interval log
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    hdr: Option<PathBuf>,

    /// Write the distribution of response times to FILE, in milliseconds, as HdrHistogram's plotters read it
    #[arg(help_heading = "Output", long, value_name = "FILE")]
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
pub struct Report {
    /// Runs, as `echoloop bench --json` writes them. - is standard input. A file may hold several, among lines of a log
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    pub files: Vec<PathBuf>,

    /// Merge runs of one test made at the same time. They may come from several processes or machines. They are aligned
    /// by their times; counts are added, and so are histograms, which keeps percentiles exact. A run that is given
    /// twice, and runs that never overlapped, are refused
    #[arg(help_heading = "Merging", long)]
    pub merge: bool,

    /// Name of the merged run. By default it is made of the names of its runs
    #[arg(help_heading = "Merging", long, value_name = "TEXT", requires = "merge")]
    pub name: Option<String>,

    /// Write the merged run to FILE
    #[arg(help_heading = "Output", long, value_name = "FILE", requires = "merge")]
    pub json: Option<PathBuf>,

    /// Write a page with charts of all runs to FILE
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Print the JSON Schema of the files instead
    #[arg(help_heading = "Output", long, exclusive = true)]
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
    fn manual_pages_are_about_all_commands() {
        let program = Cli::command();
        assert_eq!(program.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>(), COMMANDS);
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
