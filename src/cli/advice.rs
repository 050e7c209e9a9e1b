//! Answers to wrong guesses: what clap cannot know, because it is about the names of other programs' options.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command};

use super::manual::shell_words;
use crate::count::agreeing;
use crate::escape;
use crate::reactor::address::Address;
use crate::values;

/// Options that other programs have, and what to write here. `{addr}` stands for an address made of the option's value,
/// and `{value=10s}` for the value itself, if that is taken, or else this one.
struct Guess {
    options: &'static [&'static str],
    /// For these commands; for all if there are none.
    commands: &'static [&'static str],
    why: &'static str,
    example: &'static str,
}

const GUESSES: &[Guess] = &[
    Guess {
        options: &[
            "--port",
            "-p",
            "--host",
            "-H",
            "--bind",
            "--listen",
            "-l",
            "--address",
            "--addr",
            "--server",
            "--url",
        ],
        commands: &[],
        why: "the address is an argument of its own",
        example: "echoloop {command} {addr}",
    },
    Guess {
        options: &["--udp", "-u"],
        commands: &[],
        why: "the kind of socket is part of the address",
        example: "echoloop {command} udp:127.0.0.1:7777",
    },
    Guess {
        options: &["--unix", "-U", "--socket"],
        commands: &[],
        why: "the kind of socket is part of the address",
        example: "echoloop {command} unix:{value=/tmp/echo.sock}",
    },
    Guess {
        options: &["--tcp"],
        commands: &[],
        why: "the kind of socket is part of the address, and TCP is the usual one",
        example: "echoloop {command} 127.0.0.1:7777",
    },
    Guess {
        options: &["--output", "-o", "--out", "--csv", "--format", "--save"],
        commands: &["bench"],
        why: "a run is written for other programs by --json, and as a page by --html",
        example: "echoloop bench --json {value=run.json}",
    },
    Guess {
        options: &["--message", "--data", "-m", "--body", "--payload-file"],
        commands: &["bench"],
        why: "messages are made here, so that each byte of the replies can be verified; -s is their size",
        example: "echoloop bench -s 1KiB",
    },
    Guess {
        options: &["--message", "--data", "-m", "--send", "--text", "--file"],
        commands: &["connect"],
        why: "what is sent comes from standard input",
        example: "echo hello | echoloop connect",
    },
    Guess {
        options: &["--color", "--colour", "--no-color", "--no-colour"],
        commands: &[],
        why: "colours are for terminals, and the variable NO_COLOR=1 turns them off",
        example: "echoloop {command}",
    },
    Guess {
        options: &["--threads", "--workers", "--processes", "-j", "-w", "--jobs"],
        commands: &["serve"],
        why: "one thread serves all connections; for more cores start one such process per core",
        example: "echoloop serve --reuse-port",
    },
    Guess {
        options: &["--threads", "--workers", "--processes", "-j", "-w", "--jobs"],
        commands: &["bench"],
        why: "one thread makes the load; for more start several with the same --start-at, and add them up with report --merge",
        example: "echoloop bench --json one.json",
    },
    Guess {
        options: &["--requests", "--count", "--number"],
        commands: &["bench"],
        why: "a number of messages is -n",
        example: "echoloop bench -n {value=100k}",
    },
    Guess {
        options: &["--concurrency", "--clients", "--conns", "--parallel"],
        commands: &["bench", "check"],
        why: "a number of connections is -c",
        example: "echoloop {command} -c {value=100}",
    },
    Guess {
        options: &["--time", "--seconds", "-z", "--length"],
        commands: &["bench"],
        why: "how long to measure is -t",
        example: "echoloop bench -t {value=10s}",
    },
    Guess {
        options: &["--qps", "--rps", "-R", "-q"],
        commands: &["bench"],
        why: "messages per second are --rate",
        example: "echoloop bench --rate {value=50k}",
    },
    Guess {
        options: &["--pipeline", "-P", "--window"],
        commands: &["bench"],
        why: "messages in flight on each connection are -d",
        example: "echoloop bench -d {value=32}",
    },
    Guess {
        options: &["--payload", "--bytes", "--message-size", "--msg-size", "-b"],
        commands: &["bench"],
        why: "the size of messages is -s",
        example: "echoloop bench -s {value=1KiB}",
    },
    Guess {
        options: &["--timeout", "-t"],
        commands: &["serve"],
        why: "connections on which nothing moves are closed by --idle-timeout",
        example: "echoloop serve --idle-timeout {value=5m}",
    },
    Guess {
        options: &["--metrics", "--prometheus", "--admin", "--web"],
        commands: &["serve"],
        why: "metrics and the live page are on --http",
        example: "echoloop serve --http {value=9090}",
    },
    Guess {
        options: &["--log-level", "--loglevel", "--debug", "--trace", "--log"],
        commands: &[],
        why: "-v logs each connection, -vv every step, -q warnings alone",
        example: "echoloop {command} -v",
    },
    Guess {
        options: &["--daemon", "-D", "--background", "--daemonize", "--pidfile"],
        commands: &["serve"],
        why: "it stays in the foreground, for systemd (deploy/echoloop@.service) or the shell to manage",
        example: "echoloop serve",
    },
    Guess {
        options: &["--config", "-c", "-f", "--config-file"],
        commands: &["serve"],
        why: "there is no configuration file: each option is also a variable, ECHOLOOP_IDLE_TIMEOUT=5m for this one",
        example: "echoloop serve --idle-timeout 5m",
    },
    Guess {
        options: &["--tls", "--ssl", "--cert", "--key", "-k", "--insecure"],
        commands: &[],
        why: "TLS is not spoken here: put a proxy that does in front of it",
        example: "echoloop {command} 127.0.0.1:7777",
    },
];

/// Commands that other programs have.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["start", "run", "listen", "server", "echo", "daemon", "up"], "serve"),
    (&["client", "send", "nc", "telnet", "ping", "dial"], "connect"),
    (&["load", "benchmark", "perf", "stress", "attack", "loadtest"], "bench"),
    (&["test", "verify", "grade", "judge", "lint", "doctor"], "check"),
    (&["compare", "merge", "diff", "show"], "report"),
    (&["completion", "complete", "autocomplete"], "completions bash"),
    (&["manual", "manpage", "docs"], "man"),
    (&["version"], "--version"),
];

/// What is said for: no limit.
const WITHOUT: [&str; 12] =
    ["never", "none", "no", "off", "unlimited", "infinite", "infinity", "inf", "max", "forever", "disabled", "all"];

/// Words that are taken for addresses: what one says to services elsewhere.
const ORDERS: [&str; 9] = ["start", "run", "up", "stop", "restart", "status", "reload", "help", "version"];

/// Has `error` say what to write instead, if that can be known.
pub(super) fn improve(error: &mut clap::Error, program: &Command, line: &[OsString]) {
    let line: Vec<String> = line.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let command = line.iter().skip(1).find(|arg| program.find_subcommand(arg.as_str()).is_some());
    let command = command.map_or("", String::as_str);
    let is_help = line.get(1).is_some_and(|word| word == "help");
    let (text, value) = (|kind| context(error, kind), context(error, ContextKind::InvalidValue));
    let mut is_guess = true;
    let tip = match error.kind() {
        _ if let Some(tip) = one_dash(program, command, &line) => Some(tip),
        ErrorKind::UnknownArgument => text(ContextKind::InvalidArg).and_then(|arg| {
            unknown_argument(program, &arg, command, &line).or_else(|| {
                let elsewhere = option_elsewhere(program, &arg, command);
                is_guess = elsewhere.is_none();
                elsewhere.or_else(|| abbreviated(program, &arg, command, &line))
            })
        }),
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand);
            word.and_then(|word| if is_help { help_on(program, &word, command) } else { unknown_command(&word) })
        }
        ErrorKind::MissingRequiredArgument => match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => missing.first().and_then(|arg| missing_argument(arg, &line)),
            _ => None,
        },
        ErrorKind::ArgumentConflict => text(ContextKind::InvalidArg).map(|arg| {
            let example = example_value(&arg).unwrap_or_else(|| arg.trim_end_matches('.').to_owned());
            let what = match text(ContextKind::PriorArg).is_some_and(|prior| prior == arg) {
                true => "give it once",
                false => "leave one of them out",
            };
            format!("{what}, as in echoloop {command} {example}")
        }),
        ErrorKind::TooManyValues => {
            text(ContextKind::InvalidArg).map(|arg| format!("it takes no value: echoloop {command} {arg}"))
        }
        ErrorKind::InvalidValue if value.as_deref() == Some("") => {
            let option = text(ContextKind::InvalidArg);
            option.and_then(|option| example_value(&option)).map(|example| format!("for example {example}"))
        }
        ErrorKind::ValueValidation => value.and_then(|value| {
            let is_address = || text(ContextKind::InvalidArg).is_some_and(|arg| arg.contains("ADDR"));
            let is_order = || ORDERS.contains(&value.as_str()) && is_address();
            let arg = text(ContextKind::InvalidArg).unwrap_or_default();
            no_address(&value, program, command, &line)
                .or_else(|| two_words(&value, command, &line))
                .or_else(|| is_order().then(|| order(&value, command)))
                .or_else(|| is_address().then(|| another_command(program, &value, command)).flatten())
                .or_else(|| several(program, &arg, &value, command))
                .or_else(|| no_limit(program, &arg, &value, command))
        }),
        _ => None,
    };
    if error.kind() == ErrorKind::UnknownArgument {
        // That a misspelt option can also be a value helps nobody: no command takes values that begin with a dash.
        error.remove(ContextKind::Suggested);
        error.remove(ContextKind::Usage);
    }
    if let Some(tip) = tip {
        if is_guess {
            error.remove(ContextKind::SuggestedArg);
            error.remove(ContextKind::SuggestedSubcommand);
        }
        error.remove(ContextKind::Usage);
        let tip = StyledStr::from(escape::text(&tip).to_string());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    // A script may have passed on what others said, and a terminal would obey it.
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue] {
        if let Some(text) = context(error, kind) {
            error.insert(kind, ContextValue::String(escape::text(&text).to_string()));
        }
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    }
}

/// What starts a command, for those who took an order for its address.
fn order(word: &str, command: &str) -> String {
    match command {
        command if word == "help" => format!("echoloop help {command}"),
        _ if word == "version" => "echoloop --version".to_owned(),
        "serve" | "" => "it starts at once, and stops at Ctrl-C or SIGTERM: echoloop serve".to_owned(),
        command => format!("it starts at once: echoloop {command}"),
    }
}

/// Two commands in one line.
fn another_command(program: &Command, value: &str, command: &str) -> Option<String> {
    let other = program.find_subcommand(value)?.get_name();
    Some(format!("these are two commands, each on a line of its own: echoloop {command}, echoloop {other}"))
}

/// Words in shell's quotes, where it would take them for something else.
fn quoted(word: &str) -> String {
    let is_plain = |it: char| it.is_alphanumeric() || "_-./:=@%+[],".contains(it);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{word}'") }
}

/// An option behind a single dash, which is read as several short ones.
fn one_dash(program: &Command, command: &str, line: &[String]) -> Option<String> {
    let command = program.find_subcommand(command).unwrap_or(program);
    let options = || command.get_arguments().chain(program.get_arguments());
    let (place, name) = line.iter().enumerate().find_map(|(place, word)| {
        let name = word.strip_prefix('-')?.split('=').next()?;
        options().any(|arg| arg.get_long() == Some(name)).then_some((place, name))
    })?;
    let start = match command.get_name() {
        "echoloop" => "echoloop".to_owned(),
        name => format!("echoloop {name}"),
    };
    let takes_value = options().any(|arg| arg.get_long() == Some(name) && arg.get_action().takes_values());
    let value = line.get(place + 1).filter(|it| takes_value && !line[place].contains('=') && !it.starts_with('-'));
    let value = value.map_or(String::new(), |value| format!(" {}", quoted(value)));
    Some(format!("options that are words have two dashes: {start} -{}{value}", line[place]))
}

/// The value that was given to an option, in its own argument or the next.
fn value_of<'a>(option: &str, line: &'a [String]) -> Option<&'a str> {
    let is_it = |it: &String| it == option || it.strip_prefix(option).is_some_and(|rest| rest.starts_with('='));
    let place = line.iter().position(is_it)?;
    let inline = line[place].split_once('=').map(|(_, value)| value);
    inline.or_else(|| line.get(place + 1).map(String::as_str)).filter(|it| !it.starts_with('-'))
}

/// Options that are meant by their beginning, or by one of their words.
fn abbreviated(program: &Command, arg: &str, command: &str, line: &[String]) -> Option<String> {
    let name = arg.strip_prefix("--").filter(|name| name.len() > 1)?;
    let command = program.find_subcommand(command)?;
    let longs = || command.get_arguments().chain(program.get_arguments()).filter_map(|it| Some((it.get_long()?, it)));
    let mut meant: Vec<_> = longs().filter(|(long, _)| long.starts_with(name)).collect();
    if meant.is_empty() {
        meant = longs().filter(|(long, _)| long.split('-').any(|word| word == name)).collect();
    }
    let (first, option) = meant.first()?;
    let takes_value = option.get_action().takes_values();
    let value =
        value_of(arg, line).filter(|_| takes_value).map_or(String::new(), |value| format!(" {}", quoted(value)));
    let names: Vec<_> = meant.iter().map(|(long, _)| format!("--{long}")).collect();
    let (is, names) = (agreeing(names.len(), "is"), joined(&names)?);
    Some(format!("there {is} {names}: echoloop {} --{first}{value}", command.get_name()))
}

/// How to ask for help on `word`, which is no command: on the option of that name.
fn help_on(program: &Command, word: &str, command: &str) -> Option<String> {
    let name = word.trim_start_matches('-');
    let has = |it: &Command| it.get_arguments().any(|arg| arg.get_long() == Some(name));
    let having = program.find_subcommand(command).filter(|it| has(it));
    if let Some(having) = having.or_else(|| program.get_subcommands().find(|it| has(it))) {
        return Some(format!("--{name} is explained in echoloop help {}", having.get_name()));
    }
    let meant = program.clone().try_get_matches_from(["echoloop", name]).err();
    let meant = meant.and_then(|error| match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => names.first().cloned(),
        _ => None,
    });
    let command = if command.is_empty() { meant.as_deref().unwrap_or("serve") } else { command };
    Some(format!("help is about a command: echoloop help {command}"))
}

/// An example of a command line with what is missing.
fn missing_argument(arg: &str, line: &[String]) -> Option<String> {
    let is_merging = line.iter().any(|it| it == "--merge");
    Some(match arg {
        "<FILE>..." if is_merging => "for example echoloop report --merge one.json two.json".to_owned(),
        "<FILE>..." => "`echoloop bench --json run.json` writes what it takes: echoloop report run.json".to_owned(),
        "<SHELL>" => "for example echoloop completions bash".to_owned(),
        "--merge" => {
            "it is about one run that is made of several: echoloop report --merge --json all.json one.json two.json"
                .to_owned()
        }
        _ => return None,
    })
}

/// The option that an error is about, as clap writes it: `--http <ADDR>`, or `ECHOLOOP_HTTP (--http)` for its variable.
fn refused_option<'a>(program: &'a Command, arg: &str, command: &str) -> Option<(&'a str, &'a clap::Arg)> {
    let name = arg.split("--").nth(1)?.split([' ', ')', '=']).next()?;
    let options = program.find_subcommand(command)?.get_arguments();
    options.filter_map(|it| Some((it.get_long()?, it))).find(|(long, _)| *long == name)
}

/// How to give several values of an option that was given a list of them.
fn several(program: &Command, arg: &str, value: &str, command: &str) -> Option<String> {
    let (name, option) = refused_option(program, arg, command)?;
    if !matches!(option.get_action(), ArgAction::Append) {
        return None;
    }
    let is_taken = |part: &str| {
        let line = ["echoloop", command, &format!("--{name}={part}")];
        let refused = program.clone().try_get_matches_from(line).err();
        refused.is_none_or(|error| error.kind() != ErrorKind::ValueValidation)
    };
    let parts = values::list(value, is_taken)?;
    Some(match arg.split_once(" (--") {
        Some((variable, _)) => {
            format!("in a variable there are commas between them: {variable}={}", quoted(&parts.join(",")))
        }
        None => {
            let each: Vec<_> = parts.iter().map(|part| format!("--{name} {}", quoted(part))).collect();
            format!("echoloop {command} {}", each.join(" "))
        }
    })
}

/// That there is no limit without the option.
fn no_limit(program: &Command, arg: &str, value: &str, command: &str) -> Option<String> {
    let (name, option) = refused_option(program, arg, command)?;
    let is_limit =
        command != "check" && option.get_default_values().is_empty() && !["duration", "messages"].contains(&name);
    (is_limit && WITHOUT.contains(&value.to_lowercase().as_str())).then(|| format!("for that, leave --{name} out"))
}

fn unknown_argument(program: &Command, arg: &str, command: &str, line: &[String]) -> Option<String> {
    if !arg.starts_with('-') {
        // HOST PORT, as for telnet and nc.
        let host = line.get(line.iter().position(|it| it == arg)?.checked_sub(1)?)?;
        let address = format!("{host}:{arg}");
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let is_pair = is_number(arg) && !is_number(host) && host != command && address.parse::<Address>().is_ok();
        let takes = program.find_subcommand(command)?.get_positionals().next();
        let kind = takes.and_then(clap::Arg::get_value_names).map_or("", |names| names[0].as_str());
        return Some(match kind {
            _ if is_pair => format!("host and port are one argument: echoloop {command} {address}"),
            "ADDR" if host != command && host.parse::<Address>().is_ok() => {
                format!("it takes one address: echoloop {command} {host}")
            }
            "ADDR" => format!("it takes one address: echoloop {command} 127.0.0.1:7777"),
            kind => format!("it takes one {}: echoloop {command} {host}", kind.to_lowercase()),
        });
    }
    let fits = |guess: &&Guess| {
        guess.options.contains(&arg) && (guess.commands.is_empty() || guess.commands.contains(&command))
    };
    let guess = GUESSES.iter().find(fits)?;
    let command = if ["serve", "connect", "bench", "check"].contains(&command) { command } else { "serve" };
    let value = value_of(arg, line);
    let example = guess.example.replace("{command}", command).replace("{addr}", &address(value));
    let Some((before, rest)) = example.split_once("{value=") else { return Some(format!("{}: {example}", guess.why)) };
    let (usual, after) = rest.split_once('}')?;
    let with = |value: &str| format!("{before}{}{after}", quoted(value));
    let is_whole = |line: &String| program.clone().try_get_matches_from(line.split(' ')).is_ok();
    let example = value.map(with).filter(is_whole).unwrap_or_else(|| with(usual));
    Some(format!("{}: {example}", guess.why))
}

/// An address made of the value of an option such as --port.
fn address(value: Option<&str>) -> String {
    let Some(value) = value else { return "127.0.0.1:7777".to_owned() };
    let bracketed = format!("[{value}]:7777");
    [value.to_owned(), format!("{value}:7777"), bracketed]
        .into_iter()
        .find_map(|text| Some(text.parse::<Address>().ok()?.to_string()))
        .unwrap_or_else(|| "127.0.0.1:7777".to_owned())
}

/// Names as a sentence has them; `None` if there are none.
fn joined(names: &[String]) -> Option<String> {
    Some(match names {
        [name] => name.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
        [] => return None,
    })
}

/// An option that other commands have.
fn option_elsewhere(program: &Command, arg: &str, command: &str) -> Option<String> {
    if let Some(meant) = program.find_subcommand(arg.trim_start_matches('-')) {
        return Some(format!("commands have no dashes: echoloop {}", meant.get_name()));
    }
    let is_meant = |it: &&clap::Arg| {
        it.get_long().is_some_and(|long| arg.strip_prefix("--") == Some(long))
            || it.get_short().is_some_and(|short| arg.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4])))
    };
    let others = program.get_subcommands().filter(|other| other.get_name() != command);
    let having: Vec<_> =
        others.filter_map(|other| Some((other.get_name(), other.get_arguments().find(is_meant)?))).collect();
    let (first, option) = having.first()?;
    let names: Vec<_> = having.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names = joined(&names)?;
    let takes_one =
        option.get_action().takes_values() && option.get_num_args().is_none_or(|number| number.min_values() > 0);
    let value = option.get_value_names().and_then(|names| names.first()).filter(|_| takes_one);
    let line = match value {
        None => format!("echoloop {first} {arg}"),
        Some(kind) => format!("echoloop {first} {}", example_value(&format!("{arg} <{kind}>"))?),
    };
    let is_whole = program
        .clone()
        .try_get_matches_from(shell_words(&line).into_iter().map(|word| word.trim_matches('\'')))
        .is_ok();
    Some(format!("{arg} is an option of {names}{}", if is_whole { format!(": {line}") } else { String::new() }))
}

/// A value in two words, where one is wanted: HOST PORT, or NUMBER UNIT. `value` is the first or the second of them.
fn two_words(value: &str, command: &str, line: &[String]) -> Option<String> {
    let place = line.iter().position(|it| it == value)?;
    let is_number = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(port) = line.get(place + 1).filter(|it| is_number(it) && !is_number(&line[place])) {
        let host = if value.contains(':') && !value.starts_with('[') { format!("[{value}]") } else { value.to_owned() };
        let address = format!("{host}:{port}").parse::<Address>().ok()?;
        let is_option_value = place > 0 && line[place - 1].starts_with('-');
        return (!is_option_value).then(|| format!("host and port are one argument: echoloop {command} {address}"));
    }
    let option = line.get(place.checked_sub(2)?).filter(|option| option.starts_with('-'))?;
    let number = line.get(place - 1).filter(|number| is_number(number))?;
    let is_unit = value.chars().count() <= 3 && value.chars().all(char::is_alphabetic);
    is_unit.then(|| format!("a number and its unit are one argument: echoloop {command} {option} {number}{value}"))
}

/// A value that was taken for an address: the option before it takes one only in one word with it, or none.
fn no_address(value: &str, program: &Command, command: &str, line: &[String]) -> Option<String> {
    let place = line.iter().position(|it| it == value)?;
    let option = line[..place].last().filter(|_| !line[..place].iter().any(|it| it == "--"))?;
    let is_meant = |it: &&clap::Arg| it.get_long().is_some_and(|long| option.strip_prefix("--") == Some(long));
    let arg = program.find_subcommand(command)?.get_arguments().chain(program.get_arguments()).find(is_meant)?;
    if arg.get_action().takes_values() {
        let joined = format!("{option}={value}");
        let is_taken = program.clone().try_get_matches_from(["echoloop", command, &joined]).is_ok();
        return is_taken.then(|| format!("a value of {option} is part of its word: echoloop {command} {joined}"));
    }
    let is_answer = ["true", "false", "yes", "no", "on", "off"].contains(&value.to_lowercase().as_str());
    is_answer.then(|| format!("{option} takes no value: echoloop {command} {option}"))
}

fn unknown_command(word: &str) -> Option<String> {
    let lower = word.to_lowercase();
    if super::COMMANDS.contains(&lower.as_str()) {
        return Some(format!("commands are in small letters: echoloop {lower}"));
    }
    if word == "echoloop" {
        return Some("once is enough: echoloop serve".to_owned());
    }
    if let Ok(address) = word.parse::<Address>() {
        return Some(format!(
            "before an address comes what to do: echoloop serve {address} listens there, echoloop connect {address} \
             connects to it"
        ));
    }
    let (_, command) = COMMANDS.iter().find(|(words, _)| words.contains(&word))?;
    Some(format!("there is echoloop {command}"))
}

/// An option with a value that works.
fn example_value(option: &str) -> Option<String> {
    let (name, kind) = option.split_once(" <")?;
    let value = match kind.trim_end_matches("...").trim_end_matches('>') {
        "DUR" => "10s",
        "N" => "100",
        "R" => "50k",
        "SIZE" => "64KiB",
        "ADDR" => "9090",
        "BITS" => "64",
        "CIDR" => "10.0.0.0/8",
        "CMD" => "'server {port}'",
        "DIR" => "man",
        "EXPR" => "'p99<5ms'",
        "FILE" => "run.json",
        "FORMAT" => "json",
        "IP[,IP...]" => "127.0.0.1-127.0.0.9",
        "LIST" => "bytes",
        "PID" => "4711",
        "PROFILE" => "rfc862",
        "SPEC[@SHARE]" => "delay=5ms",
        "TEMPLATE" => "{host}:{port}",
        "TEXT" | "WORD" => "bye",
        "TIME" => "2026-11-24T20:00:00Z",
        _ => return None,
    };
    Some(format!("{name} {value}"))
}

/// `line` with each option and the negative number after it in one word, where clap takes the number for options: so that it is
/// the number that is refused.
pub(super) fn join_negative_values(program: &Command, line: &[OsString]) -> Vec<OsString> {
    let command = line.iter().find_map(|arg| program.find_subcommand(arg)).unwrap_or(program);
    let takes_value = |option: &str| {
        let takes = |arg: &&clap::Arg| arg.get_action().takes_values();
        let named = |arg: &clap::Arg| {
            arg.get_long().is_some_and(|long| option.strip_prefix("--") == Some(long))
                || arg.get_short().is_some_and(|short| option.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4])))
        };
        command.get_arguments().filter(takes).any(named)
    };
    let mut joined: Vec<OsString> = Vec::new();
    for arg in line {
        let is_negative = arg
            .to_str()
            .and_then(|arg| arg.strip_prefix('-'))
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'));
        match joined.last_mut() {
            Some(option) if is_negative && option.to_str().is_some_and(takes_value) => {
                option.push("=");
                option.push(arg);
            }
            _ => joined.push(arg.clone()),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    use crate::cli::Cli;

    /// The command lines in a message, each behind a colon, or a comma.
    fn examples(text: &str) -> Vec<Vec<String>> {
        let lines = text.split("echoloop ").skip(1).filter_map(|rest| rest.split(['\n', ',']).next());
        lines
            .map(|line| line.trim_end_matches(" listens there").trim_end_matches(" connects to it"))
            .map(words)
            .collect()
    }

    fn words(line: &str) -> Vec<String> {
        ["echoloop"].into_iter().chain(shell_words(line)).map(|word| word.trim_matches('\'').to_owned()).collect()
    }

    fn answer_of(line: &str) -> String {
        let line: Vec<OsString> = words(line).into_iter().map(Into::into).collect();
        let line = join_negative_values(&Cli::command(), &line);
        let mut error = Cli::command().try_get_matches_from(&line).unwrap_err();
        improve(&mut error, &Cli::command(), &line);
        error.to_string()
    }

    #[test]
    fn every_guess_is_answered_by_what_works() {
        let mut lines: Vec<String> = Vec::new();
        for guess in GUESSES {
            let all = ["serve", "connect", "bench", "check"];
            let commands = if guess.commands.is_empty() { &all[..] } else { guess.commands };
            for command in commands {
                lines.extend(guess.options.iter().map(|option| format!("{command} {option} 4711")));
            }
        }
        lines.extend(COMMANDS.iter().flat_map(|(words, _)| words.iter().map(|word| (*word).to_owned())));
        lines.extend(
            [
                "7777",
                "localhost:7777",
                "udp:7",
                "connect localhost 7777",
                "bench ::1",
                "serve start",
                "serve --print hex",
            ]
            .map(Into::into),
        );
        for line in lines {
            let Err(_) = Cli::try_parse_from(words(&line)) else { continue }; // some are options of some commands
            let text = answer_of(&line);
            let examples = examples(&text);
            assert!(!examples.is_empty() || text.contains("as in ["), "{line}: {text}");
            for example in examples {
                let is_taken = match Cli::try_parse_from(&example) {
                    Ok(_) => true,
                    Err(error) => match error.kind() {
                        ErrorKind::DisplayVersion => true,
                        kind => example[1] == "report" && kind == ErrorKind::MissingRequiredArgument,
                    },
                };
                assert!(is_taken, "{line}: {text}");
            }
        }
    }

    #[test]
    fn an_address_is_made_of_what_was_given() {
        assert!(answer_of("serve --port 8080").contains("echoloop serve 127.0.0.1:8080"));
        assert!(answer_of("connect --port=8080").contains("echoloop connect 127.0.0.1:8080"));
        assert!(answer_of("bench --host example.net").contains("echoloop bench example.net:7777"));
        assert!(answer_of("check --host ::1").contains("echoloop check [::1]:7777"));
        assert!(answer_of("connect example.net 7").contains("echoloop connect example.net:7"));
        assert!(answer_of("[::1]:7").contains("echoloop serve [::1]:7 listens"));
    }

    #[test]
    fn a_negative_value_is_refused_as_such() {
        for line in ["bench -t -5s", "bench --duration -5", "bench -c -1", "serve --idle-timeout -4m", "check -c -6"] {
            let text = answer_of(line);
            assert!(text.contains("it is negative"), "{line}: {text}");
            assert!(text.contains(&format!("'{}'", line.rsplit(' ').next().unwrap())), "{text}");
        }
    }

    #[test]
    fn what_is_refused_cannot_harm_a_terminal() {
        for line in [
            "serve \x1b[31mx",
            "serve --\x1b[31m",
            "\x1b[31m",
            "man \x1b[31m",
            "unix:/\x1b[31m",
            "serve --port unix:\x1b[31m",
        ] {
            let text = answer_of(line);
            assert!(text.contains("\\u{1b}[31m") && !text.contains('\x1b'), "{text:?}");
        }
    }

    #[test]
    fn option_of_another_command_is_told_with_it() {
        for (line, answer) in [
            (
                "serve --connections 5",
                "--connections is an option of bench and check: echoloop bench --connections 100",
            ),
            ("bench --print", "--print is an option of serve: echoloop serve --print"),
            ("connect --rate 5", "--rate is an option of bench: echoloop bench --rate 50k"),
            ("--rate 5", "--rate is an option of bench: echoloop bench --rate 50k"),
            ("connect --merge", "--merge is an option of report\n"),
            ("--serve", "commands have no dashes: echoloop serve"),
        ] {
            let text = answer_of(line);
            assert!(text.contains(answer), "{line}: {text}");
        }
    }

    #[test]
    fn each_kind_of_slip_is_answered_in_kind() {
        for (line, answer) in [
            ("serve --http a:1,b:2", "echoloop serve --http a:1 --http b:2\n"),
            ("serve --http 9090,9091", "echoloop serve --http 9090 --http 9091\n"),
            ("serve --deny 10.0.0.0/8;192.0.2.1", "echoloop serve --deny 10.0.0.0/8 --deny 192.0.2.1\n"),
            ("serve --fault drop=1%,delay=5ms", "echoloop serve --fault drop=1% --fault delay=5ms\n"),
            ("bench --fail-if p99>5ms,errors>0", "echoloop bench --fail-if 'p99>5ms' --fail-if 'errors>0'\n"),
            ("bench --conn 5", "there are --connections and --connect-rate: echoloop bench --connections 5\n"),
            ("serve --drain=5m", "there is --drain-timeout: echoloop serve --drain-timeout 5m\n"),
            ("serve --interval 5s", "there is --stats-interval: echoloop serve --stats-interval 5s\n"),
            ("bench -rate 5", "have two dashes: echoloop bench --rate 5\n"),
            ("bench -duration=5s", "have two dashes: echoloop bench --duration=5s\n"),
            ("-version", "have two dashes: echoloop --version\n"),
            ("help bench rate", "--rate is explained in echoloop help bench\n"),
            ("help bench --rate", "--rate is explained in echoloop help bench\n"),
            ("help idle-timeout", "--idle-timeout is explained in echoloop help serve\n"),
            ("help serv", "help is about a command: echoloop help serve\n"),
            ("bench help", "echoloop help bench\n"),
            ("version", "there is echoloop --version\n"),
            ("man bench rate", "it takes one command: echoloop man bench\n"),
            ("bench a:1 b:2", "it takes one address: echoloop bench a:1\n"),
            ("report", "echoloop report run.json\n"),
            ("report --merge", "echoloop report --merge one.json two.json\n"),
            ("report --json a b", "echoloop report --merge --json all.json one.json two.json\n"),
            ("completions", "echoloop completions bash\n"),
            ("serve -q -v", "leave one of them out, as in echoloop serve --"),
            ("bench --find-rate p99<5ms -n 5", "leave one of them out, as in echoloop bench --find-rate 'p99<5ms'\n"),
            ("serve --idle-timeout never", "for that, leave --idle-timeout out\n"),
            ("serve --max-connections unlimited", "for that, leave --max-connections out\n"),
            ("serve --backlog 5 --backlog 6", "give it once, as in echoloop serve --backlog 100\n"),
            ("serve --proxy-protocol=v2", "it takes no value: echoloop serve --proxy-protocol\n"),
            ("serve --print hex", "echoloop serve --print=hex\n"),
            ("bench serve", "echoloop bench, echoloop serve\n"),
            ("SERVE", "echoloop serve\n"),
            ("serve --unix /tmp/x", "echoloop serve unix:/tmp/x\n"),
            ("bench --requests=1000", "echoloop bench -n 1000\n"),
            ("bench --requests=many", "echoloop bench -n 100k\n"),
            ("bench -o x.json", "echoloop bench --json x.json\n"),
            ("connect host:1:2", "\"1:2\" is not a port"),
            ("serve *:80", "127.0.0.1:80, 0.0.0.0:80, [::]:80\n"),
        ] {
            let text = answer_of(line);
            assert!(text.contains(answer), "{line}: {text}");
        }
        assert!(!answer_of("bench --duration forever").contains("leave"));
    }

    #[test]
    fn value_in_two_words_is_put_together() {
        for (line, answer) in [
            ("serve 0.0.0.0 8080", "echoloop serve 0.0.0.0:8080"),
            ("serve ::1 8080", "echoloop serve [::1]:8080"),
            ("serve --send-buffer 64 K", "echoloop serve --send-buffer 64K"),
            ("bench -t 10 s", "as in 10ms, 10s, 10m"),
            ("serve --print hex", "a value of --print is part of its word: echoloop serve --print=hex"),
            ("serve 7777 --print Text", "a value of --print is part of its word: echoloop serve --print=Text"),
            ("serve --once true", "--once takes no value: echoloop serve --once"),
            ("connect --hex yes", "--hex takes no value: echoloop connect --hex"),
            ("serve --quiet off", "--quiet takes no value: echoloop serve --quiet"),
            ("serve --print example.net", "write it as in example.net:7777"),
        ] {
            let text = answer_of(line);
            assert!(text.contains(answer), "{line}: {text}");
        }
    }

    #[test]
    fn a_missing_value_is_shown_by_example() {
        fn check(command: &Command) {
            let takes = |arg: &&clap::Arg| arg.get_num_args().is_none_or(|count| count.min_values() > 0);
            let valued = command.get_arguments().filter(|arg| arg.get_action().takes_values()).filter(takes);
            for arg in valued {
                let (Some(long), name) = (arg.get_long(), command.get_name()) else { continue };
                let Err(mut error) = Cli::command().try_get_matches_from(["echoloop", name, &format!("--{long}")])
                else {
                    panic!("--{long} needs no value");
                };
                improve(&mut error, &Cli::command(), &["echoloop".into(), name.into()]);
                let text = error.to_string();
                let Some((_, example)) = text.split_once("for example ") else { panic!("no example: {text}") };
                let line = format!("{name} {}", example.lines().next().unwrap());
                if let Err(error) = Cli::try_parse_from(words(&line)) {
                    assert_ne!(error.kind(), ErrorKind::ValueValidation, "{error}");
                }
            }
        }
        Cli::command().get_subcommands().for_each(check);
    }
}
