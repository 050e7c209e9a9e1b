//! The log, on standard error.
//!
//! What is logged goes to an [`Outlet`], so that no event loop ever waits for the reader of the log, and each line is written
//! in one piece by one `write`, so that the lines of several processes do not mix. On a terminal, `simple_logger` words
//! and writes them, in its colours; it can write nowhere else, nor in one piece. In a file or a pipe the lines look the
//! same. To systemd's journal, which notes the time itself, levels are told as sd-daemon(3) wants them; and `--log-format
//! json` makes an object of each line.

use std::borrow::Cow;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use simple_logger::SimpleLogger;

use crate::count::{agreeing, counted};
use crate::outlet::{Outlet, Wording};
use crate::values::show_micros;
use crate::{escape, stdio};

/// Lines may wait for their reader up to so many bytes.
const LIMIT: usize = 1024 * 1024;

/// What a line takes beside its text, roughly.
const OVERHEAD: usize = 100;

/// A line that is written later than this after the event says so, where the writer stamps the time.
const LATE: Duration = Duration::from_secs(1);

static OUTLET: OnceLock<Outlet<Line>> = OnceLock::new();

/// Lines name their places in the source.
static PLACES: AtomicBool = AtomicBool::new(false);

/// Nobody has read the last lines within the time that there was.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// What lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people, and for systemd's journal if standard error leads there
    #[default]
    Text,
    /// An object a line: time, level, target, message
    Json,
}

/// Sets up the log. `verbosity` is 0 for the usual, more for more and -1 for warnings and errors alone. From 3 on each line
/// names its place in the source, and as text tells how long after the line before it was.
pub fn init(verbosity: i16, format: Format) {
    let level = match verbosity {
        i16::MIN..=-1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let places = verbosity > 2;
    PLACES.store(places, Ordering::Relaxed);
    let logger = simple_logger(level);
    // If there can be no thread there is still a log, at the price of waiting for its reader.
    let threadless = Outlet::new("log", LIMIT, stdio::stderr(), Style::new(format, level, places))
        .map_or(true, |outlet| OUTLET.set(outlet).is_err());
    if log::set_boxed_logger(Box::new(Queued { filter: logger, threadless })).is_ok() {
        log::set_max_level(level);
    }
}

fn simple_logger(level: LevelFilter) -> SimpleLogger {
    // mio narrates its registrations at trace; the loop's own story is easier to follow without.
    let logger = SimpleLogger::new().with_level(level).with_module_level("mio", LevelFilter::Info);
    let colors = stdio::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    logger.with_colors(colors)
}

/// Says why the program fails, as the last line of its log.
pub fn fail(error: &anyhow::Error) {
    let text = format!("{error:#}");
    match OUTLET.get() {
        Some(outlet) => _ = push(outlet, Line::failure(text)),
        None => _ = stdio::eprint(format!("echoloop: {}\n", escape::text(&text))),
    }
}

/// Waits until the log is written, or until then: then it is given up, and not waited for again.
pub fn finish(until: Instant) {
    if let Some(outlet) = OUTLET.get()
        && !GIVEN_UP.load(Ordering::Relaxed)
        && !outlet.finish(until)
    {
        GIVEN_UP.store(true, Ordering::Relaxed);
    }
}

/// What the `log` macros call.
struct Queued {
    filter: SimpleLogger,
    threadless: bool,
}

impl Log for Queued {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match OUTLET.get() {
            Some(outlet) if !self.threadless => _ = push(outlet, Line::new(record)),
            _ => log_directly(&self.filter, record),
        }
    }

    fn flush(&self) {}
}

/// `simple_logger` writes with `eprintln!`, which panics where standard error cannot be written to.
fn log_directly(logger: &SimpleLogger, record: &Record) {
    let _ = catch_unwind(AssertUnwindSafe(|| logger.log(record)));
}

fn push(outlet: &Outlet<Line>, line: Line) -> bool {
    let bytes = line.message.len() + line.target.len() + OVERHEAD;
    outlet.push(line, bytes, 1)
}

/// A record of its own.
struct Line {
    time: SystemTime,
    level: Level,
    target: Cow<'static, str>,
    message: String,
    /// The file and line that it is from, if that is asked for.
    place: Option<(Cow<'static, str>, u32)>,
    /// The program's last words, which are no log.
    is_failure: bool,
}

impl Line {
    fn new(record: &Record) -> Self {
        // Nearly always the target is the module, whose name lives for ever.
        let target = match record.module_path_static() {
            Some(module) if module == record.target() => Cow::Borrowed(module),
            _ => Cow::Owned(record.target().to_owned()),
        };
        let file = || match record.file_static() {
            Some(file) => Some(Cow::Borrowed(file)),
            None => record.file().map(|file| Cow::Owned(file.to_owned())),
        };
        let place = PLACES.load(Ordering::Relaxed).then(|| Some((file()?, record.line()?))).flatten();
        let message = record.args().to_string();
        Line { time: SystemTime::now(), level: record.level(), target, message, place, is_failure: false }
    }

    fn failure(message: String) -> Self {
        let target = Cow::Borrowed("echoloop");
        Line { time: SystemTime::now(), level: Level::Error, target, message, place: None, is_failure: true }
    }
}

/// How lines are written, on the outlet's thread.
enum Style {
    Plain,
    /// With how long after the line before it was, and its place.
    Close {
        before: Option<SystemTime>,
    },
    /// In colours.
    Terminal(SimpleLogger),
    Journal,
    Json,
}

impl Style {
    fn new(format: Format, level: LevelFilter, places: bool) -> Self {
        match format {
            Format::Json => Style::Json,
            Format::Text if places => Style::Close { before: None },
            Format::Text if leads_to_journal() => Style::Journal,
            Format::Text if stdio::stderr().is_terminal() => Style::Terminal(simple_logger(level)),
            Format::Text => Style::Plain,
        }
    }
}

impl Wording for Style {
    type Item = Line;

    fn item(&mut self, line: Line, out: &mut Vec<u8>) {
        let Line { time: at, level, target, message, place, is_failure } = &line;
        let time = humantime::format_rfc3339_millis(*at);
        let place = place.as_ref().map(|(file, line)| format!("{file}:{line}"));
        // Writing to memory does not fail.
        let _ = match self {
            Style::Json => {
                let (level, time) = (level.as_str(), time.to_string());
                let object = Object { time: &time, level, target, message, place: place.as_deref() };
                serde_json::to_string(&object)
                    .map_err(io::Error::from)
                    .and_then(|object| writeln!(out, "{}", escape::json(&object)))
            }
            Style::Journal if *is_failure => writeln!(out, "<3>echoloop: {}", escape::text(message)),
            Style::Journal => writeln!(out, "<{}>[{target}] {}", severity(*level), escape::text(message)),
            _ if *is_failure => writeln!(out, "echoloop: {}", escape::text(message)),
            Style::Close { before } => {
                let since = at.duration_since(before.unwrap_or(*at)).unwrap_or_default();
                *before = Some(*at);
                let (since, place) = (show_micros(since.as_secs_f64() * 1e6), place.as_deref().unwrap_or(target));
                writeln!(out, "+{since:>7} {:<5} {} ({place})", level.as_str(), escape::text(message))
            }
            // What eprintln! cannot do is wait where it must not block.
            Style::Terminal(logger) if !stdio::stderr().is_nonblocking() => {
                log_late(logger, &line);
                Ok(())
            }
            Style::Terminal(_) | Style::Plain => {
                writeln!(out, "{time} {:<5} [{target}] {}", level.as_str(), escape::text(message))
            }
        };
    }

    fn left_out(&mut self, lines: u64, out: &mut Vec<u8>) {
        let (lines, were) = (counted(lines, "line"), agreeing(lines, "was"));
        let message = format!("{lines} {were} not logged: nobody read in time");
        let target = Cow::Borrowed(module_path!());
        self.item(
            Line { time: SystemTime::now(), level: Level::Warn, target, message, place: None, is_failure: false },
            out,
        );
    }

    fn failed(&mut self, _: &io::Error) {} // there is nowhere else to tell it
}

#[derive(Serialize)]
struct Object<'a> {
    time: &'a str,
    level: &'a str,
    target: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'a str>,
}

/// Has a line logged by `simple_logger`, which takes the time when it writes for the time of the event.
fn log_late(logger: &SimpleLogger, line: &Line) {
    let mut record = Record::builder();
    record.level(line.level).target(&line.target);
    let message = escape::text(&line.message);
    let age = line.time.elapsed().unwrap_or_default();
    if age < LATE {
        log_directly(logger, &record.args(format_args!("{message}")).build());
    } else {
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        log_directly(logger, &record.args(format_args!("{message} ({age} ago)")).build());
    }
}

/// A level as sd-daemon(3) and syslog(3) number it.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error leads to systemd's journal: `JOURNAL_STREAM` names the device and inode that it had when the
/// service was started, and it may have been redirected since (systemd.exec(5)).
fn leads_to_journal() -> bool {
    let Some((device, inode)) = std::env::var("JOURNAL_STREAM").ok().and_then(|value| {
        let (device, inode) = value.split_once(':')?;
        Some((device.parse::<i128>().ok()?, inode.parse::<i128>().ok()?))
    }) else {
        return false;
    };
    rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|stat| (i128::from(stat.st_dev), i128::from(stat.st_ino)) == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, message: &str) -> Line {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_600_000_000_123);
        Line {
            time,
            level,
            target: "echoloop::serve".into(),
            message: message.to_owned(),
            place: None,
            is_failure: false,
        }
    }

    fn worded(mut style: Style, line: Line) -> String {
        let mut out = Vec::new();
        style.item(line, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_style_puts_a_record_on_one_line() {
        let message = "from \u{9b}\n\"evil\" ü";
        let plain = "2020-09-13T12:26:40.123Z WARN  [echoloop::serve] from \\u{9b}\\n\"evil\" ü\n";
        assert_eq!(worded(Style::Plain, line(Level::Warn, message)), plain);
        let journal = "<6>[echoloop::serve] from \\u{9b}\\n\"evil\" ü\n";
        assert_eq!(worded(Style::Journal, line(Level::Info, message)), journal);
        let json = worded(Style::Json, line(Level::Error, message));
        assert_eq!(json.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({
            "time": "2020-09-13T12:26:40.123Z", "level": "ERROR", "target": "echoloop::serve", "message": message
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn places_and_distances_are_told_when_asked() {
        let at = |micros, place: &'static str| {
            let line = line(Level::Trace, "read 5");
            let time = line.time + Duration::from_micros(micros);
            Line { time, place: Some((place.into(), 60)), ..line }
        };
        let mut style = Style::Close { before: None };
        let mut out = Vec::new();
        for (micros, place) in [(0, "src/a.rs"), (44_100, "src/b.rs"), (44_000, "src/c.rs")] {
            style.item(at(micros, place), &mut out);
        }
        let expected = "\
+0.00 us TRACE read 5 (src/a.rs:60)
+44.1 ms TRACE read 5 (src/b.rs:60)
+0.00 us TRACE read 5 (src/c.rs:60)
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let json = worded(Style::Json, at(0, "src/a.rs"));
        assert!(json.contains(r#""place":"src/a.rs:60""#), "{json}");
    }

    #[test]
    fn any_message_is_one_json_line() {
        for message in
            ["\0\u{1}\u{7f}\u{85}\u{9b}\r\n\t\"\\/", "\u{2028}\u{202e}\u{e0001}\u{feff}\u{fffd}😀", "</script>"]
        {
            let json = worded(Style::Json, line(Level::Info, message));
            assert_eq!((json.matches('\n').count(), json.ends_with('\n')), (1, true), "{json:?}");
            assert!(!json.trim_end().contains(|it: char| it.is_control()), "{json:?}");
            let object: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(object["message"], message);
        }
    }

    #[test]
    fn failure_is_worded_as_the_last_line() {
        let failure = || Line::failure("cannot listen".to_owned());
        assert_eq!(worded(Style::Plain, failure()), "echoloop: cannot listen\n");
        assert_eq!(worded(Style::Journal, failure()), "<3>echoloop: cannot listen\n");
        assert!(worded(Style::Json, failure()).contains(r#""level":"ERROR""#));
    }
}
