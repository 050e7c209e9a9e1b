//! What help and the manual pages say beside the options: exit codes, notes, examples. Help is laid out for the terminal's
//! width; manual pages are man(7)'s macros, without a word that `mandoc -T lint` objects to.

use std::ffi::OsString;
use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

/// The day on which the pages were last looked through.
const DATE: &str = "2026-11-25";

/// Help is as wide as the terminal, but no wider than this: longer lines are hard to read.
const MAX_WIDTH: usize = 100;

/// What is said of a command.
pub(super) struct Manual {
    command: &'static str,
    /// Under headings of their own.
    notes: &'static [(&'static str, &'static str)],
    exit: &'static [(&'static str, &'static str)],
    /// Command lines, and what they do; the first ones are in the short help, too.
    examples: &'static [(&'static str, &'static str)],
}

/// How many examples the short help has.
const SHORT: usize = 3;

const WRONG_LINE: (&str, &str) = ("2", "a mistake on the command line, or in a variable");

const MANUALS: [Manual; 8] = [
    Manual {
        command: "echoloop",
        notes: &[],
        exit: &[("0", "done"), ("1", "it failed; the last line on standard error says why"), WRONG_LINE],
        examples: &[
            ("echoloop serve", "echoes on 127.0.0.1:7777 until Ctrl-C"),
            ("echoloop connect", "lines you type go out, what comes back is printed"),
            ("echoloop bench", "50 connections for 10 seconds, every byte verified"),
            ("echoloop check", "is what listens on 127.0.0.1:7777 an echo service?"),
        ],
    },
    Manual {
        command: "serve",
        notes: &[
            (
                "Signals",
                "SIGINT, SIGTERM and SIGHUP stop accepting, send what is left to send, close, log a summary and exit 0, all \
                 within --drain-timeout (and after --stop-delay); a second one, or one before it listens, ends at once. SIGINT and SIGHUP stay \
                 ignored if they were (nohup).",
            ),
            (
                "Messages",
                "For --terminator, --message-limit and --print, a message ends at LF or CRLF, or where the socket has been \
                 drained: a word sent without a newline is a message too. Without these options, bytes are not looked at.",
            ),
        ],
        exit: &[
            ("0", "stopped by a signal, or by --once or --accept-limit"),
            ("1", "it could not start: the address is in use, say"),
            WRONG_LINE,
            ("129, 130, 143", "ended at once by SIGHUP, SIGINT or SIGTERM"),
        ],
        examples: &[
            ("echoloop serve", "this machine only, on port 7777"),
            ("echoloop serve 0.0.0.0:7777 '[::]:7777'", "everybody, over IPv4 and IPv6"),
            ("echoloop serve --http 9090", "live page: http://127.0.0.1:9090/"),
            ("echoloop serve 127.0.0.1:7 udp:127.0.0.1:7 unix:/run/echo.sock", "all kinds of sockets"),
            ("echoloop serve --once", "one connection, one message"),
            ("echoloop serve --accept-limit 1 --terminator bye", "one connection, until it says bye"),
            ("echoloop serve --terminator bye --print", "any number, each until it says bye"),
            ("echoloop serve --fault delay=exp:20ms --fault reset-after=1MiB@5%", "to test clients with"),
            ("echoloop serve -vv --send-buffer 4KiB", "watch partial sends being resumed"),
        ],
    },
    Manual {
        command: "connect",
        notes: &[(
            "Input and output",
            "Lines of standard input are sent as they come, and what comes back is written to standard output as it comes. The \
             end of the input closes the sending side, and the rest of the replies is still received; a last line without a \
             newline is sent as it is.",
        )],
        exit: &[
            ("0", "everything that was read came back"),
            (
                "1",
                "nobody listens, the connection ended or --timeout passed before everything had come back, or standard output \
                 cannot be written to",
            ),
            WRONG_LINE,
            ("129, 130, 143", "ended by SIGHUP, SIGINT or SIGTERM"),
        ],
        examples: &[
            ("echoloop connect", "type lines; Ctrl-D ends"),
            ("echo ping | echoloop connect --expect ping --timeout 1s", "a health check"),
            ("echoloop connect example.net:7 < file | cmp - file", "does everything come back as it was?"),
            ("echoloop connect --expect SSH- localhost:22", "a server that speaks first"),
            ("echoloop connect --hex udp:127.0.0.1:7", "what exactly is in the datagrams?"),
        ],
    },
    Manual {
        command: "bench",
        notes: &[
            (
                "Closed loop",
                "The usual: each connection has --depth messages in flight, and sends the next one when a reply has come. \
                 That finds what a server can do, and hides how it answers those who do not wait.",
            ),
            (
                "Open loop",
                "With --rate, messages are due by a fixed schedule. The response time counts from when a message was due, the \
                 service time from when it was sent; a server that stalls shows in the first.",
            ),
        ],
        exit: &[
            ("0", "done, and nothing was wrong"),
            (
                "1",
                "wrong bytes, failed connections, replies that did not come in time, no reply or no connection at all, or a \
                 file that could not be written",
            ),
            WRONG_LINE,
            (
                "3",
                "a --fail-if holds or had no data, the rate of --rate was not kept, or the criterion of --find-rate held at \
                 no rate",
            ),
        ],
        examples: &[
            ("echoloop bench", "50 connections for 10 seconds"),
            ("echoloop bench -c 100 -r 50k --html run.html", "open loop, with a report page"),
            ("echoloop bench --find-rate 'p99<5ms'", "how much can it take?"),
            ("echoloop bench -c 1000 -d 32 -t 1m", "pipelining"),
            ("echoloop bench -c 10 --idle 10k --watch-pid 4711", "what do idle connections cost?"),
            ("echoloop bench --fail-if 'p99>2ms' --fail-if 'rate<100k' -q", "in CI"),
        ],
    },
    Manual {
        command: "report",
        notes: &[],
        exit: &[("0", "done"), ("1", "a file cannot be read or written, or the runs cannot be merged"), WRONG_LINE],
        examples: &[
            ("echoloop report before.json after.json --html both.html", "side by side, with ratios to the first"),
            ("echoloop report --merge node-*.json --json all.json", "one test, made by several machines"),
        ],
    },
    Manual {
        command: "check",
        notes: &[(
            "Profiles",
            "rfc862 requires what RFC 862 says, and notes the rest. tutorial-1 is for a server of one message, tutorial-2 of \
             one connection until the word (bye), tutorial-3 of many connections. path is for an echo through a proxy: what \
             proxies may change is noted.",
        )],
        exit: &[
            ("0", "all that is required holds"),
            ("1", "it does not, or there is nothing to check"),
            WRONG_LINE,
            ("128 and more", "ended by a signal: 128 and its number"),
        ],
        examples: &[
            ("echoloop check", "whatever is on port 7777"),
            ("echoloop check udp:127.0.0.1:7", "datagrams"),
            ("echoloop check --exec 'python3 server.py {port}'", "starts, checks, ends it"),
            ("echoloop check --only bytes,ends.half-close -v", "some of it, with the conversation"),
            ("echoloop check --pid $(pidof server) --junit out.xml", "its memory and processor too, and a file for CI"),
        ],
    },
    Manual {
        command: "completions",
        notes: &[],
        exit: &[("0", "done"), ("1", "standard output cannot be written to"), WRONG_LINE],
        examples: &[
            ("source <(echoloop completions bash)", "for this shell"),
            ("echoloop completions zsh > ~/.zfunc/_echoloop", "where ~/.zfunc is in fpath"),
            ("echoloop completions fish > ~/.config/fish/completions/echoloop.fish", "for all shells from now on"),
        ],
    },
    Manual {
        command: "man",
        notes: &[],
        exit: &[("0", "done"), ("1", "the pages cannot be written"), WRONG_LINE],
        examples: &[
            ("echoloop man serve | man -l -", "read one"),
            ("echoloop man --dir /usr/local/share/man/man1", "install all of them"),
        ],
    },
];

const ENVIRONMENT: &str = "\
Each option can also be given as a variable: ECHOLOOP_IDLE_TIMEOUT=1m is --idle-timeout 1m, ECHOLOOP_PRINT=1 is --print. The \
command line wins, also over variables of options that it excludes. An empty variable is unset; where an option may be given \
several times, its variable is a list with commas.";

fn find(command: &str) -> Option<&'static Manual> {
    MANUALS.iter().find(|manual| manual.command == command)
}

/// The columns that help may use.
pub(super) fn width() -> usize {
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = terminal_size::terminal_size().map(|(width, _)| width.0.into()).or_else(columns);
    width.unwrap_or(MAX_WIDTH).clamp(20, MAX_WIDTH)
}

/// The options that the short help of each command has, in its order: what most people need, and no more than a page of it.
const COMMON: [(&str, &[&str]); 6] = [
    (
        "serve",
        &[
            "http",
            "print",
            "once",
            "terminator",
            "max-connections",
            "idle-timeout",
            "drain-timeout",
            "allow",
            "deny",
            "reuse-port",
            "fault",
        ],
    ),
    ("connect", &["no-newline", "hex", "terminator", "expect", "timeout", "connect-timeout"]),
    (
        "bench",
        &[
            "connections",
            "size",
            "depth",
            "rate",
            "find-rate",
            "duration",
            "messages",
            "warm-up",
            "timeout",
            "fail-if",
            "watch-pid",
            "json",
            "html",
        ],
    ),
    ("report", &["merge", "name", "json", "html"]),
    (
        "check",
        &["profile", "only", "skip", "terminator", "connections", "timeout", "exec", "pid", "list", "json", "junit"],
    ),
    ("man", &["dir"]),
];

/// Which help is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Help {
    /// A page: the commonest options, each in a line.
    Short,
    /// All options under their headings, with all that is said of them.
    Long,
}

impl Help {
    /// What `line` asks for, if it asks for help: `-h`, alone or among other letters, for the short one.
    pub(super) fn of(line: &[OsString]) -> Help {
        let is_long = line.iter().any(|arg| arg == "--help");
        let has_h = |arg: &OsString| {
            arg.to_str().is_some_and(|arg| arg.starts_with('-') && !arg.starts_with("--") && arg.contains('h'))
        };
        let is_alone = line.len() <= 1;
        if !is_long && (is_alone || line.iter().any(has_h)) { Help::Short } else { Help::Long }
    }
}

/// Adds to the help of the program and its commands what clap does not know, in `width` columns.
pub(super) fn lay_out(command: Command, help: Help, width: usize) -> Command {
    let command = match help {
        Help::Long => command,
        Help::Short => {
            let common = COMMON.iter().find(|(name, _)| *name == command.get_name()).map_or(&[][..], |(_, all)| all);
            command.mut_args(|arg| shorten(arg, common))
        }
    };
    let command = command.term_width(width).mut_subcommands(|command| lay_out(command, help, width));
    let Some(manual) = find(command.get_name()) else { return command };
    let examples = |count: usize| {
        let count = count.min(manual.examples.len());
        format!("Examples:\n{}", examples(&manual.examples[..count], width))
    };
    if help == Help::Short {
        let more = match manual.command {
            "echoloop" => "The options of a command: echoloop COMMAND -h".to_owned(),
            name => format!("All options, exit codes and more examples: echoloop {name} --help"),
        };
        return command.after_help(format!("{}\n{}", examples(SHORT), wrapped(&more, width, 0).trim_end()));
    }
    let mut text = String::new();
    for (heading, note) in manual.notes {
        text += &format!("{heading}:\n{}\n", wrapped(note, width, 2));
    }
    text += "Exit codes:\n";
    let widest = manual.exit.iter().map(|(code, _)| code.len()).max().unwrap_or(0);
    for (code, meaning) in manual.exit {
        let meaning = wrapped(meaning, width, widest + 4);
        text += &format!("  {code:widest$}  {}", meaning.trim_start());
    }
    text += &format!("\nEnvironment:\n{}\n{}", wrapped(ENVIRONMENT, width, 2), examples(usize::MAX));
    command.after_help(text)
}

/// Places in the short help behind all that a command has of its own.
const LAST: usize = 100;

/// In the short help an option has its first sentence, if it is there at all.
fn shorten(arg: Arg, common: &[&str]) -> Arg {
    let first = arg.get_help().map(|help| first_sentence(&help.to_string()).to_owned());
    let place = arg.get_long().and_then(|long| common.iter().position(|it| *it == long));
    let last = ["verbose", "quiet"].iter().position(|it| arg.get_id() == it).map(|place| LAST + place);
    let is_hidden = !arg.is_positional() && place.or(last).is_none();
    let arg = match first {
        Some(first) => arg.help(first),
        None => arg,
    };
    let arg = match arg.is_positional() {
        true => arg,
        false if arg.get_action().takes_values() => arg.help_heading(None::<&str>).hide_possible_values(true),
        false => arg.help_heading(None::<&str>),
    };
    arg.display_order(place.or(last).unwrap_or(0)).hide(is_hidden)
}

fn first_sentence(text: &str) -> &str {
    let ends = text.match_indices(". ").map(|(end, _)| end);
    let is_end = |end: &usize| text[end + 2..].starts_with(|c: char| c.is_uppercase() || c == '-');
    ends.into_iter().find(is_end).map_or(text, |end| &text[..end])
}

/// Examples, side by side with what they do if that fits; otherwise beneath it. What is still too long goes on in another
/// line, as the shell reads it.
fn examples(examples: &[(&str, &str)], width: usize) -> String {
    let widest = examples.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let is_table = examples.iter().all(|(_, what)| 2 + widest + 2 + what.len() <= width);
    let mut text = String::new();
    for (line, what) in examples {
        if is_table {
            text += &format!("  {line:widest$}  {what}\n");
        } else {
            for part in words_in_lines(what.split(' '), width - 4) {
                text += &format!("  # {part}\n");
            }
            text += &format!("  {}\n", words_in_lines(shell_words(line), width - 6).join(" \\\n    "));
        }
    }
    text
}

/// The words of a command line, those in quotes whole.
pub(super) fn shell_words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    line.split(|c| {
        quoted ^= c == '\'';
        c == ' ' && !quoted
    })
    .collect()
}

fn words_in_lines<'a>(words: impl IntoIterator<Item = &'a str>, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let lines = words_in_lines(text.split(' '), width.saturating_sub(indent).max(10));
    lines.iter().map(|line| format!("{:indent$}{line}\n", "")).collect()
}

/// The manual page of `command`, which is built, and a command of `program` or the program itself.
pub(super) fn page(program: &Command, command: &Command) -> String {
    let is_program = program.get_name() == command.get_name();
    let name = if is_program { "echoloop".to_owned() } else { format!("echoloop-{}", command.get_name()) };
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut page = Page::default();
    page.raw(&format!(
        ".TH {} 1 {DATE} \"echoloop {}\" \"User Commands\"\n",
        escaped(&name.to_uppercase()),
        env!("CARGO_PKG_VERSION")
    ));
    page.section("NAME");
    page.filled(&format!("{} \\- {}", escaped(&name), escaped(about.trim_end_matches('.'))));
    page.section("SYNOPSIS");
    let mut synopsis =
        format!("\\fBecholoop{}\\fR", if is_program { String::new() } else { format!(" {}", command.get_name()) });
    for arg in command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_global_set() && !arg.is_hide_set())
    {
        let spelling = spellings(arg).pop().unwrap_or_default();
        let dots = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
        synopsis += &format!(" [{spelling}]{dots}");
    }
    for arg in command.get_positionals() {
        let (value, dots) = (value(arg), if arg.get_action().takes_values() && is_many(arg) { "..." } else { "" });
        synopsis += &if arg.is_required_set() { format!(" {value}{dots}") } else { format!(" [{value}]{dots}") };
    }
    if command.has_subcommands() {
        synopsis += " \\fICOMMAND\\fR [\\fIARGUMENT\\fR]...";
    }
    page.filled(&synopsis);
    page.section("DESCRIPTION");
    page.text(&command.get_long_about().map_or(about, ToString::to_string));
    for arg in command.get_positionals() {
        page.item(&value(arg), &meaning(arg));
    }
    let manual = find(command.get_name());
    if command.has_subcommands() {
        page.section("COMMANDS");
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            page.item(&format!("\\fBecholoop\\-{}\\fR(1)", escaped(sub.get_name())), &about);
        }
    }
    page.section("OPTIONS");
    let mut headings: Vec<Option<&str>> = Vec::new();
    for arg in command.get_opts().chain(command.get_arguments()).filter(|arg| !arg.is_positional()) {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            page.raw(&format!(".SS {}\n", escaped(heading)));
        }
        let here = |arg: &&Arg| !arg.is_positional() && !arg.is_hide_set() && arg.get_help_heading() == heading;
        for arg in command.get_arguments().filter(here) {
            page.item(&spellings(arg).join(", "), &meaning(arg));
        }
    }
    for (heading, text) in manual.map_or(&[][..], |manual| manual.notes) {
        page.section(&heading.to_uppercase());
        page.text(text);
    }
    page.section("ENVIRONMENT");
    page.text(ENVIRONMENT);
    page.section("EXIT STATUS");
    for (code, meaning) in manual.map_or(&[][..], |manual| manual.exit) {
        page.item(&format!("\\fB{}\\fR", escaped(code)), meaning);
    }
    page.section("EXAMPLES");
    for (line, what) in manual.map_or(&[][..], |manual| manual.examples) {
        page.text(&format!("{}{}:", what[..1].to_uppercase(), &what[1..]));
        page.raw(&format!(
            ".PP\n.RS 4\n.nf\n{}\n.fi\n.RE\n.PP\n",
            words_in_lines(shell_words(line), 66)
                .iter()
                .map(|line| escaped(line))
                .collect::<Vec<_>>()
                .join(" \\e\n    ")
        ));
    }
    page.section("SEE ALSO");
    let others =
        program.get_subcommands().map(Command::get_name).filter(|name| *name != "help" && *name != command.get_name());
    let mut others: Vec<String> = others.map(|name| format!("echoloop-{name}")).collect();
    if !is_program {
        others.insert(0, "echoloop".to_owned());
    }
    others.sort();
    let others: Vec<String> = others.iter().map(|name| format!("\\fB{}\\fR(1)", escaped(name))).collect();
    page.filled(&others.join(", "));
    page.0.replace(".PP\n.SH", ".SH").replace(".PP\n.PP\n", ".PP\n")
}

fn is_many(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn value(arg: &Arg) -> String {
    let name =
        arg.get_value_names().and_then(|names| names.first()).map_or(arg.get_id().as_str(), |name| name.as_str());
    format!("\\fI{}\\fR", escaped(name))
}

/// The short and the long name of an option, with its value.
fn spellings(arg: &Arg) -> Vec<String> {
    let mut all: Vec<String> = arg.get_short().map(|short| format!("\\fB\\-{short}\\fR")).into_iter().collect();
    if let Some(long) = arg.get_long() {
        let is_optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
        let value = match arg.get_action() {
            ArgAction::Set | ArgAction::Append if is_optional => format!("[={}]", value(arg)),
            ArgAction::Set | ArgAction::Append => format!(" {}", value(arg)),
            _ => String::new(),
        };
        all.push(format!("\\fB\\-\\-{}\\fR{value}", escaped(long)));
    }
    all
}

fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    if !arg.get_action().takes_values() {
        return text;
    }
    let values = arg.get_possible_values();
    let values: Vec<_> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
    if !values.is_empty() {
        let _ = write!(text, " (one of {})", values.join(", "));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && !arg.is_hide_default_value_set() {
        let _ = write!(text, " [default: {}]", defaults.join(", "));
    }
    text
}

/// A page of man(7)'s macros, in short lines.
#[derive(Default)]
struct Page(String);

impl Page {
    fn raw(&mut self, text: &str) {
        self.0 += text;
    }

    fn section(&mut self, heading: &str) {
        self.raw(&format!(".SH {heading}\n"));
    }

    fn text(&mut self, text: &str) {
        let paragraphs = text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
        for (index, paragraph) in paragraphs.enumerate() {
            if index > 0 {
                self.raw(".PP\n");
            }
            self.filled(&escaped(&paragraph.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }

    /// Text that is escaped already, in lines of the source that are short, and none of which begins as a macro does.
    fn filled(&mut self, text: &str) {
        for line in words_in_lines(text.split(' '), 78) {
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            self.raw(&format!("{guard}{line}\n"));
        }
    }

    fn item(&mut self, what: &str, meaning: &str) {
        self.raw(&format!(".TP\n{what}\n"));
        self.text(meaning);
    }
}

/// What roff prints as this text: dashes that can be copied, and no escapes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('^', "\\(ha").replace('~', "\\(ti")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    use crate::cli::Cli;

    fn built(help: Help, width: usize) -> Command {
        let mut program = lay_out(Cli::command(), help, width);
        program.build();
        program
    }

    #[test]
    fn every_command_has_its_manual() {
        let program = built(Help::Long, 80);
        let mut names: Vec<_> =
            program.get_subcommands().map(Command::get_name).filter(|name| *name != "help").collect();
        names.push("echoloop");
        names.sort_unstable();
        let mut manuals = MANUALS.map(|manual| manual.command);
        manuals.sort_unstable();
        assert_eq!(names, manuals);
    }

    #[test]
    fn examples_are_command_lines_that_parse() {
        for (line, _) in MANUALS.iter().flat_map(|manual| manual.examples) {
            let (_, line) = line.split_once("echoloop ").unwrap();
            let words = shell_words(line).into_iter().map(|word| word.trim_matches('\''));
            let words: Vec<_> = words
                .take_while(|word| !["|", "<", ">"].contains(word))
                .map(|word| word.trim_end_matches(')'))
                .collect();
            let words = words.iter().map(|word| word.replace("$(pidof", "1"));
            let words = ["echoloop".to_owned()].into_iter().chain(words.filter(|word| word != "server"));
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    /// The help of each command, and of the program.
    fn helps(help: Help, width: usize) -> Vec<(String, String)> {
        let mut program = built(help, width);
        let names: Vec<_> = program.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        let mut all = vec![("echoloop".to_owned(), program.render_help().to_string())];
        for name in names.into_iter().filter(|name| name != "help") {
            let text = program.find_subcommand_mut(&name).unwrap().render_help().to_string();
            all.push((name, text));
        }
        all
    }

    #[test]
    fn help_fits_terminals_of_any_width() {
        for width in [50, 80, 100] {
            for (name, text) in [helps(Help::Short, width), helps(Help::Long, width)].concat() {
                let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
                assert!(widest.chars().count() <= width, "{name}, {width}: {widest:?}");
                let tail = text.split("Examples:").nth(1).unwrap();
                assert!(tail.contains("echoloop "), "{tail}");
            }
        }
    }

    #[test]
    fn short_help_is_a_page() {
        for (name, text) in helps(Help::Short, 80) {
            assert!(text.lines().count() <= 30, "{name}: {} lines\n{text}", text.lines().count());
            assert!(name == "echoloop" || text.ends_with(&format!("echoloop {name} --help\n")), "{text}");
            let options = text.split("Options:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap();
            let broken = options.lines().find(|line| !line.trim_start().starts_with('-'));
            assert_eq!(broken, None, "an option's first sentence is a line: {name}\n{text}");
        }
    }

    #[test]
    fn common_options_are_options() {
        let program = built(Help::Long, 80);
        for (name, common) in COMMON {
            let command = program.find_subcommand(name).unwrap();
            for long in common {
                assert!(command.get_arguments().any(|arg| arg.get_long() == Some(long)), "{name} --{long}");
            }
        }
    }

    #[test]
    fn verbosity_comes_last_in_help() {
        for (name, text) in helps(Help::Short, 80).iter().chain(&helps(Help::Long, 80)) {
            let place = |what: &str| text.find(&format!("\n  {what}")).unwrap_or_else(|| panic!("{name}: {text}"));
            let last = text.rfind("\n      --").filter(|_| text.contains("Help:\n"));
            assert!(place("-v, --verbose") < place("-q, --quiet"));
            let others = text.match_indices("\n      --").map(|(place, _)| place).filter(|it| Some(*it) != last);
            assert!(others.max().is_none_or(|other| other < place("-v, --verbose")), "{name}: {text}");
        }
    }

    #[test]
    fn kind_of_help_is_what_was_asked_for() {
        let help = |line: &str| Help::of(&line.split(' ').map(Into::into).collect::<Vec<_>>());
        for line in ["echoloop", "echoloop -h", "echoloop serve -h", "echoloop -vh serve"] {
            assert_eq!(help(line), Help::Short, "{line}");
        }
        for line in ["echoloop --help", "echoloop serve --help", "echoloop help serve", "echoloop -h --help"] {
            assert_eq!(help(line), Help::Long, "{line}");
        }
    }

    #[test]
    fn long_example_goes_on_as_shells_read_it() {
        let text = examples(&[("run --one 'two words' --three", "why")], 24);
        assert_eq!(text, "  # why\n  run --one \\\n    'two words' \\\n    --three\n");
    }

    #[test]
    fn first_sentence_ends_before_a_capital() {
        assert_eq!(first_sentence("One such as 127.0.0.1. Two"), "One such as 127.0.0.1");
        assert_eq!(first_sentence("Only one, e.g. this"), "Only one, e.g. this");
    }
}
