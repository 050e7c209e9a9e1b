//! Answers to wrong guesses: what clap cannot know, because it is about the names of other programs' options.

use std::ffi::OsString;

use clap::Command;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::manual::shell_words;
use crate::escape;
use crate::reactor::address::Address;

/// Options that other programs have, and what to write here. `{addr}` stands for an address made of the option's value.
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
        example: "echoloop {command} unix:/tmp/echo.sock",
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
        example: "echoloop bench -n 100k",
    },
    Guess {
        options: &["--concurrency", "--clients", "--conns", "--parallel"],
        commands: &["bench", "check"],
        why: "a number of connections is -c",
        example: "echoloop {command} -c 100",
    },
    Guess {
        options: &["--time", "--seconds", "-z", "--length"],
        commands: &["bench"],
        why: "how long to measure is -t",
        example: "echoloop bench -t 10s",
    },
    Guess {
        options: &["--qps", "--rps", "-R", "-q"],
        commands: &["bench"],
        why: "messages per second are --rate",
        example: "echoloop bench --rate 50k",
    },
    Guess {
        options: &["--pipeline", "-P", "--window"],
        commands: &["bench"],
        why: "messages in flight on each connection are -d",
        example: "echoloop bench -d 32",
    },
    Guess {
        options: &["--payload", "--bytes", "--message-size", "--msg-size", "-b"],
        commands: &["bench"],
        why: "the size of messages is -s",
        example: "echoloop bench -s 1KiB",
    },
    Guess {
        options: &["--timeout", "-t"],
        commands: &["serve"],
        why: "connections on which nothing moves are closed by --idle-timeout",
        example: "echoloop serve --idle-timeout 5m",
    },
    Guess {
        options: &["--metrics", "--prometheus", "--admin", "--web"],
        commands: &["serve"],
        why: "metrics and the live page are on --http",
        example: "echoloop serve --http 9090",
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
        why: "it stays in the foreground, for systemd (deploy/systemd) or the shell to manage",
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
];

/// Words that are taken for addresses: what one says to services elsewhere.
const ORDERS: [&str; 8] = ["start", "run", "up", "stop", "restart", "status", "reload", "help"];

/// Has `error` say what to write instead, if that can be known.
pub(super) fn improve(error: &mut clap::Error, program: &Command, line: &[OsString]) {
    let line: Vec<String> = line.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let command = line.iter().skip(1).find(|arg| program.find_subcommand(arg.as_str()).is_some());
    let command = command.map_or("", String::as_str);
    let (text, value) = (|kind| context(error, kind), context(error, ContextKind::InvalidValue));
    let mut is_guess = true;
    let tip = match error.kind() {
        ErrorKind::UnknownArgument => text(ContextKind::InvalidArg).and_then(|arg| {
            unknown_argument(&arg, command, &line).or_else(|| {
                is_guess = false;
                option_elsewhere(program, &arg, command)
            })
        }),
        ErrorKind::InvalidSubcommand => text(ContextKind::InvalidSubcommand).and_then(|word| unknown_command(&word)),
        ErrorKind::InvalidValue if value.as_deref() == Some("") => {
            let option = text(ContextKind::InvalidArg);
            option.and_then(|option| example_value(&option)).map(|example| format!("for example {example}"))
        }
        ErrorKind::ValueValidation => value.and_then(|value| {
            let is_address = || text(ContextKind::InvalidArg).is_some_and(|arg| arg.contains("ADDR"));
            let is_order = || ORDERS.contains(&value.as_str()) && is_address();
            let tip = no_address(&value, program, command, &line).or_else(|| two_words(&value, command, &line));
            tip.or_else(|| is_order().then(|| order(command)))
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
fn order(command: &str) -> String {
    match command {
        "serve" | "" => "it starts at once, and stops at Ctrl-C or SIGTERM: echoloop serve".to_owned(),
        command => format!("it starts at once: echoloop {command}"),
    }
}

fn unknown_argument(arg: &str, command: &str, line: &[String]) -> Option<String> {
    let place = line.iter().position(|it| it == arg || it.strip_prefix(arg).is_some_and(|rest| rest.starts_with('=')));
    let inline = place.and_then(|place| line[place].split_once('=')).map(|(_, value)| value);
    let value = inline.or_else(|| line.get(place? + 1).map(String::as_str)).filter(|it| !it.starts_with('-'));
    if !arg.starts_with('-') {
        // HOST PORT, as for telnet and nc.
        let host = line.get(place?.checked_sub(1)?)?;
        let address = format!("{host}:{arg}");
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let is_pair = is_number(arg) && !is_number(host) && host != command && address.parse::<Address>().is_ok();
        return Some(match is_pair {
            true => format!("host and port are one argument: echoloop {command} {address}"),
            false => format!("it takes one address: echoloop {command} 127.0.0.1:7777"),
        });
    }
    let fits = |guess: &&Guess| {
        guess.options.contains(&arg) && (guess.commands.is_empty() || guess.commands.contains(&command))
    };
    let guess = GUESSES.iter().find(fits)?;
    let command = if ["serve", "connect", "bench", "check"].contains(&command) { command } else { "serve" };
    let example = guess.example.replace("{command}", command).replace("{addr}", &address(value));
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
    let names: Vec<_> = having.iter().map(|(name, _)| *name).collect();
    let names = match &names[..] {
        [name] => (*name).to_owned(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
        [] => return None,
    };
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
                    Err(error) => example[1] == "report" && error.kind() == ErrorKind::MissingRequiredArgument,
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
