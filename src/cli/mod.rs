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
use crate::{bench, check, connect, serve, stdio, values};
use environment::Environment;
use manual::Help;

/// An echo server on one event loop, a line client, a load generator, and a grader for echo services.
///
/// What a peer sends comes back to it, byte for byte, until it closes its side.
#[derive(Debug, Parser)]
#[command(version, long_version = crate::build::long_version(), propagate_version = true, arg_required_else_help = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,

    /// Log more: -v connections, -vv event loop. The latter logs every step; -vvv also names its place in the source
    #[arg(help_heading = "Logging", short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Log only warnings and errors
    #[arg(help_heading = "Logging", short, long, global = true)]
    quiet: bool,

    /// Format of the log
    #[arg(
        help_heading = "Logging",
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        ignore_case = true,
        default_value_t
    )]
    log_format: Format,

    /// Print help: -h is a page, --help has everything
    #[arg(help_heading = "Help", short, long, global = true, action = ArgAction::Help)]
    help: Option<bool>,

    /// Print the version: -V alone, --version with commit, target and compiler
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
                // Without a usage: that the line is well formed is not in doubt.
                Err(text) => {
                    let text = format!("{text}\n\nFor more information, try '--help'.\n");
                    Err(clap::Error::raw(ErrorKind::ValueValidation, text))
                }
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
            Command::Check(config) => config.check(),
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
    if shell == Shell::Fish {
        text.extend(fish_arguments(&Cli::command()).into_bytes());
    }
    stdio::print(&text)
}

/// The words that arguments without a name can be, which `clap_complete` leaves out for fish; and what there is help on, which it
/// takes for a command that was given already.
fn fish_arguments(program: &clap::Command) -> String {
    let words = |arg: &clap::Arg| {
        arg.get_possible_values().iter().map(|it| it.get_name().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let of_command = |command: &clap::Command| {
        let all = command.get_positionals().map(words).filter(|words| !words.is_empty());
        all.map(|words| (command.get_name().to_owned(), words)).collect::<Vec<_>>()
    };
    let help = ("help".to_owned(), COMMANDS.join(" "));
    let all = program.get_subcommands().flat_map(of_command).chain([help]);
    all.map(|(name, words)| {
        format!("complete -c echoloop -n \"__fish_echoloop_using_subcommand {name}\" -f -a \"{words}\"\n")
    })
    .collect()
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
    #[arg(help_heading = "Output", long, value_name = "EXPR", value_parser = one_criterion)]
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

fn one_criterion(text: &str) -> Result<Criterion, String> {
    values::one_of_several(text, str::parse)
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
    fn fish_completes_words_behind_commands() {
        let lines = fish_arguments(&Cli::command());
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(
            lines.contains("subcommand man\" -f -a \"serve connect bench report check completions man\""),
            "{lines}"
        );
        assert!(lines.contains("subcommand completions\" -f -a \"bash elvish fish powershell zsh\""), "{lines}");
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

    /// Each option that takes a value, and each argument: its command, what to write before a value, and the kind of value.
    fn values() -> Vec<(String, String, String)> {
        let mut all = Vec::new();
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
                let kind = arg.get_value_names().map_or("", |names| names[0].as_str()).to_owned();
                let before = arg.get_long().map_or(String::new(), |long| format!("--{long}="));
                all.push((command.get_name().to_owned(), before, kind));
            }
        }
        all
    }

    /// What is wrong with this value, if it is refused as a value.
    fn refusal(program: &mut clap::Command, command: &str, before: &str, value: &str) -> Option<String> {
        let value = format!("{before}{value}");
        let line =
            if before.is_empty() { vec!["echoloop", command, "--", &value] } else { vec!["echoloop", command, &value] };
        let error = program.try_get_matches_from_mut(line).err()?;
        [ErrorKind::ValueValidation, ErrorKind::InvalidValue].contains(&error.kind()).then(|| error.to_string())
    }

    /// Whatever people write, in hope or by mistake.
    const WRITTEN: [&str; 96] = [
        "",
        " ",
        "0",
        "00",
        "-1",
        "-5s",
        "+1",
        "1",
        "2",
        "10",
        "1.5",
        ".5",
        "1.",
        "1k",
        "50k",
        "1K",
        "1M",
        "1Ki",
        "64KiB",
        "64 KiB",
        "64 sheep",
        "1e3",
        "1E3",
        "1e99",
        "1e-3",
        "1_000",
        "1__0",
        "1,000",
        "99999999999999999999",
        "9e18",
        "10s",
        "10 s",
        "5sec",
        "1m 30s",
        "1m30",
        "0s",
        "9000years",
        "50k/s",
        "1k/s",
        "5/sec",
        "50kps",
        "1k/min",
        "1MiB/s",
        "inf",
        "NaN",
        "0x10",
        "soon",
        "now",
        "many",
        "all",
        "localhost",
        "localhost:",
        "localhost:http",
        ":7777",
        ":",
        "7777",
        "65536",
        "127.0.0.1",
        "127.0.0.1:7777",
        "127.0.0.1:0",
        "0.0.0.0:7777",
        "[::1]",
        "[::1]:7777",
        "[::1",
        "::1",
        "::1:7777",
        "2001:db8::1:80",
        "udp:",
        "udp:7",
        "udp::7",
        "udp:localhost",
        "udp:[::1]",
        "tcp:",
        "tcp://h:1",
        "udp://h",
        "http://h:80/x",
        "https://h",
        "http://:80",
        "unix:",
        "unix:@",
        "unix:/x",
        "a:1,b:2",
        ",",
        "a b:1",
        "10.0.0.0/33",
        "10.0.0.*",
        "p99",
        "p99>2",
        "rate>soon",
        "delay",
        "drop=2",
        "freeze=1s",
        "half-close=x",
        "{x}",
        "4KiB..1",
        "é",
    ];

    #[test]
    fn each_refusal_has_an_example_that_works() {
        let mut program = Cli::command();
        let (mut refused, mut examples) = (0, 0);
        for (command, before, kind) in values() {
            for value in WRITTEN {
                let Some(text) = refusal(&mut program, &command, &before, value) else { continue };
                refused += 1;
                let is_list = kind == "LIST" && value.contains(',');
                assert!(text.contains(&format!("'{value}'")) || is_list || value.is_empty(), "{command}: {text}");
                let first = text.lines().next().unwrap();
                let all = match first.rsplit_once("write it as in ") {
                    Some((_, all)) => all.split(", ").collect::<Vec<_>>(),
                    // Words to choose from, in clap's own way.
                    None => match text.split_once("[possible values: ") {
                        Some((_, all)) => all.split(']').next().unwrap().split(", ").collect(),
                        None if value.is_empty() => continue, // a missing value: see the advice
                        None => panic!("{command} {before}{value}: no example: {text}"),
                    },
                };
                for example in
                    all.iter().flat_map(|all| if kind == "ADDR" { all.split(' ').collect() } else { vec![*all] })
                {
                    examples += 1;
                    let refused = refusal(&mut program, &command, &before, example.trim_matches('\''));
                    assert_eq!(refused, None, "{command} {before}{value} has the example {example}");
                }
            }
        }
        assert!(refused > 2000 && examples > 4000, "{refused} {examples}");
    }

    #[test]
    fn values_of_a_kind_are_written_alike_everywhere() {
        let alike = |kind: &str| match kind {
            "N" | "PID" | "BITS" => &["100", "1e2", "1_00", "0.1k", "100.0", "1E2"][..],
            "R" => &["50", "5e1", "0.05k", "50/s", "50 /s", "0.05k/s", "50/sec"],
            "SIZE" => &["100", "1e2", "0.1k", "100B", "100b", "1KiB", "1 KiB", "1_000", "0.5Mi", "1K"],
            "DUR" => &["1s", "1 s", "1sec", "1000ms", "1e3ms", "1_000ms", "0.5m", "1m 30s", "1m30s"],
            "ADDR" => &["7777", "127.0.0.1:7777", "[::1]:7777", "localhost:7777", "tcp:127.0.0.1:7777", "unix:/x"],
            "CIDR" => &["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"],
            "EXPR" => &["p99<5ms", "p99 < 5 ms", "rate>50k", "rate>50k/s"],
            "WORD" | "TEXT" | "FILE" | "DIR" => &["bye", "1k", "a b"],
            "CMD" | "COMMAND" | "FORMAT" | "IP[,IP...]" | "LIST" | "PROFILE" | "shell" | "SHELL" | "SPEC[@SHARE]"
            | "TEMPLATE" | "TIME" => &[],
            other => panic!("a kind of values that has no grammar yet: {other}"),
        };
        let mut program = Cli::command();
        for (command, before, kind) in values() {
            for value in alike(&kind) {
                assert_eq!(refusal(&mut program, &command, &before, value), None, "{command} {before}{value}");
            }
            let is_number = ["N", "PID", "BITS", "R", "SIZE", "DUR"].contains(&kind.as_str());
            for value in ["-1", "1,000", "soon", "1__0", "0x10"].iter().filter(|_| is_number) {
                assert!(refusal(&mut program, &command, &before, value).is_some(), "{command} {before}{value}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_flag_value_is_taken_or_named(
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
