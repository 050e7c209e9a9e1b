//! Options from the environment: `--idle-timeout` is also `ECHOLOOP_IDLE_TIMEOUT`.
//!
//! The command line wins: an option that was given there takes its own variable's place, and that of every option it cannot be
//! used with. An empty variable is unset. Where an option may be given several times its variable is a list, with commas.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use clap::builder::FalseyValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::values;

const PREFIX: &str = "ECHOLOOP_";

/// What the project's own build and tests are told by (CONTRIBUTING.md), and hand down to the programs that they start.
const OF_TESTS: [&str; 4] = ["ECHOLOOP_AXE", "ECHOLOOP_COMMIT", "ECHOLOOP_SECONDS", "ECHOLOOP_UPDATE"];

/// The variables that may be options, with their values.
pub(super) struct Environment(Vec<(String, OsString)>);

impl Environment {
    pub(super) fn new(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Environment(
            variables.filter_map(named).filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty()).collect(),
        )
    }

    fn holds(&self, variable: &str) -> bool {
        self.0.iter().any(|(name, _)| name == variable)
    }

    /// The command, whose options are also read from those of the variables that the command line leaves any say.
    pub(super) fn attach(&self, command: Command, line: &[OsString]) -> Command {
        let mut built = command.clone();
        built.build();
        let given = command.clone().ignore_errors(true).try_get_matches_from(line).ok();
        match given.as_ref().is_some_and(|given| has_exclusive(&built, given)) {
            true => command,
            false => self.attach_to(command, &built, given.as_ref()),
        }
    }

    fn attach_to(&self, command: Command, built: &Command, given: Option<&ArgMatches>) -> Command {
        let given_args: Vec<&Arg> = built
            .get_arguments()
            .filter(|arg| given.is_some_and(|given| is_given(given, arg.get_id().as_str())))
            .collect();
        let excluded = |arg: &Arg| {
            given_args.iter().any(|given| {
                let excludes = |one: &Arg, other: &Arg| {
                    built.get_arg_conflicts_with(one).iter().any(|it| it.get_id() == other.get_id())
                };
                arg.get_id() != given.get_id()
                    && (arg.is_exclusive_set() || excludes(given, arg) || excludes(arg, given))
            })
        };
        command
            .mut_args(|arg| {
                let Some(variable) = variable(&arg) else { return arg };
                let of_built = built.get_arguments().find(|it| it.get_id() == arg.get_id());
                if !self.holds(&variable) || of_built.is_some_and(excluded) {
                    return arg;
                }
                let is_given = given_args.iter().any(|given| given.get_id() == arg.get_id());
                let arg = arg.env(variable).hide_env(true);
                match arg.get_action() {
                    // A flag in the environment is on unless its value says no.
                    ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
                    ArgAction::Count => arg.value_parser(count),
                    ArgAction::Append if !is_given => arg.value_delimiter(','),
                    _ => arg,
                }
            })
            .mut_subcommands(|command| {
                let name = command.get_name().to_owned();
                let given = given.and_then(|given| given.subcommand_matches(&name));
                match built.find_subcommand(&name) {
                    Some(built) => self.attach_to(command, built, given),
                    None => command,
                }
            })
    }

    /// Has an error about an option that was not given on the command line say which variable it comes from.
    pub(super) fn name_variables(&self, error: &mut clap::Error, line: &[OsString]) {
        let from_variable = |option: &str| {
            let name = option.split([' ', '=']).next()?.trim_end_matches('.').strip_prefix("--")?;
            let short = format!("--{name}");
            let is_given = line.iter().any(|arg| {
                let arg = arg.to_string_lossy();
                arg == short || arg.strip_prefix(&short).is_some_and(|rest| rest.starts_with('='))
            });
            let variable = format!("{PREFIX}{}", name.replace('-', "_").to_uppercase());
            (!is_given && self.holds(&variable)).then(|| format!("{variable} ({option})"))
        };
        for kind in [ContextKind::InvalidArg, ContextKind::PriorArg] {
            let new = match error.get(kind) {
                Some(ContextValue::String(option)) => from_variable(option).map(ContextValue::String),
                Some(ContextValue::Strings(options)) => Some(ContextValue::Strings(
                    options.iter().map(|option| from_variable(option).unwrap_or_else(|| option.clone())).collect(),
                )),
                _ => None,
            };
            if let Some(new) = new {
                error.insert(kind, new);
            }
        }
    }

    /// Variables that look like options, and are none: a slip of the pen, most likely.
    pub(super) fn unknown(&self, command: &Command) -> Vec<String> {
        fn collect(command: &Command, known: &mut BTreeSet<String>) {
            known.extend(command.get_arguments().filter_map(variable));
            command.get_subcommands().for_each(|command| collect(command, known));
        }
        let mut known = BTreeSet::from(OF_TESTS.map(str::to_owned));
        collect(command, &mut known);
        let is_unknown = |(name, value): &&(String, OsString)| !known.contains(name) && !is_service_link(name, value);
        self.0.iter().filter(is_unknown).map(|(name, _)| name.clone()).collect()
    }
}

/// How often a flag is given that may be given several times: a number; or once, unless the value says no.
fn count(text: &str) -> Result<u8, String> {
    match text.trim().to_lowercase().as_str() {
        "yes" | "true" | "on" | "y" | "t" => Ok(1),
        "no" | "false" | "off" | "n" | "f" => Ok(0),
        number => values::whole(0..=255)(number).map_err(|error| match error.split_once(": write it as in ") {
            Some((cause, _)) => format!("{cause}: write it as in 1, 2, 3"),
            None => error,
        }),
    }
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// Whether an option was given that stands alone: then no variable has any say.
fn has_exclusive(command: &Command, given: &ArgMatches) -> bool {
    let here = |arg: &Arg| arg.is_exclusive_set() && is_given(given, arg.get_id().as_str());
    let below = |(name, given)| command.find_subcommand(name).is_some_and(|command| has_exclusive(command, given));
    command.get_arguments().any(here) || given.subcommand().is_some_and(below)
}

/// The variable of an option: `ECHOLOOP_`, and its name.
fn variable(arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|long| !["help", "version"].contains(long))?;
    Some(format!("{PREFIX}{}", long.replace('-', "_").to_uppercase()))
}

/// Whether a variable is one of those that Kubernetes sets in each pod for a service called `echoloop`, or `echoloop-NAME`:
/// `..._SERVICE_HOST`, `..._SERVICE_PORT`, `..._PORT=tcp://...`, `..._PORT_7777_TCP_ADDR`
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let Some((before, after)) = name.rsplit_once("_PORT") else { return name.ends_with("_SERVICE_HOST") };
    let is_url = || value.to_string_lossy().contains("://");
    let is_numbered = || {
        let mut parts = after.trim_start_matches('_').split('_');
        parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
            && parts.next().is_some_and(|kind| ["TCP", "UDP", "SCTP"].contains(&kind))
    };
    // ..._PORT_7777_TCP_PORT ends with another _PORT.
    before.ends_with("_SERVICE")
        || after.is_empty() && is_url()
        || is_numbered()
        || after.is_empty() && is_service_link(before, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    use crate::cli::Cli;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::new(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn every_option_has_a_variable_of_its_own() {
        fn collect(command: &Command, all: &mut Vec<(String, String)>) {
            let longs = command.get_arguments().filter_map(|arg| Some((variable(arg)?, arg.get_long()?.to_owned())));
            all.extend(longs);
            command.get_subcommands().for_each(|command| collect(command, all));
        }
        let mut all = Vec::new();
        collect(&Cli::command(), &mut all);
        assert!(all.len() > 60);
        for (variable, long) in all {
            assert_eq!(variable, format!("ECHOLOOP_{}", long.to_uppercase().replace('-', "_")));
        }
    }

    #[test]
    fn flag_that_counts_takes_numbers_and_words() {
        for (text, number) in [("2", 2), ("yes", 1), ("True", 1), ("off", 0), ("0", 0)] {
            assert_eq!(count(text), Ok(number), "{text}");
        }
        assert_eq!(count("loud"), Err("it does not begin with a number: write it as in 1, 2, 3".to_owned()));
    }

    #[test]
    fn service_links_and_options_are_no_slips() {
        let links = [
            ("ECHOLOOP_SERVICE_HOST", "10.0.0.11"),
            ("ECHOLOOP_SERVICE_PORT", "7777"),
            ("ECHOLOOP_SERVICE_PORT_ECHO", "7777"),
            ("ECHOLOOP_PORT", "tcp://10.0.0.11:7777"),
            ("ECHOLOOP_PORT_7777_TCP", "tcp://10.0.0.11:7777"),
            ("ECHOLOOP_PORT_7777_TCP_PROTO", "tcp"),
            ("ECHOLOOP_PORT_7777_TCP_PORT", "7777"),
            ("ECHOLOOP_PORT_7777_UDP_ADDR", "10.0.0.11"),
            ("ECHOLOOP_METRICS_SERVICE_HOST", "10.0.0.12"),
            ("ECHOLOOP_METRICS_PORT_9090_TCP_ADDR", "10.0.0.12"),
            ("ECHOLOOP_IDLE_TIMEOUT", "1m"),
            ("ECHOLOOP_EMPTY", ""),
            ("PATH", "/bin"),
        ];
        assert_eq!(environment(&links).unknown(&Cli::command()), [""; 0]);
        for slip in ["ECHOLOOP_IDLE_TIMOUT", "ECHOLOOP_PORT", "ECHOLOOP_PORT_RANGE", "ECHOLOOP_HOST", "ECHOLOOP_"] {
            assert_eq!(environment(&[(slip, "7777")]).unknown(&Cli::command()), [slip]);
        }
    }
}
