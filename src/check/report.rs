//! What a check has found, as others read it: lines of text, JSON, JUnit's XML, and the catalogue as a page.

use std::fmt::Write;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::Serialize;

use super::Format;
use super::catalogue::{self, About, Promise};
use crate::build::{self, Build};
use crate::count::{agreeing, counted};
use crate::escape;

/// The version of the files' format.
const FORMAT: u32 = 1;

/// What was found out about a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is kept.
    Holds,
    /// It is not kept.
    Broken,
    /// It is not kept, and was not required.
    Note,
    /// It could not be judged.
    NotJudged,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Holds => "holds",
            Verdict::Broken => "BROKEN",
            Verdict::Note => "note",
            Verdict::NotJudged => "not judged",
        }
    }
}

/// One promise, and what was found out about it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Judgement {
    /// The promise's identifier.
    pub id: &'static str,
    /// What is promised.
    pub promise: &'static str,
    /// The check fails if it is broken.
    pub required: bool,
    /// What was found out.
    pub verdict: Verdict,
    /// How often it was tried: what may be the machine's fault is told only if it is so again.
    pub tries: u32,
    /// How long that took, in seconds.
    pub seconds: f64,
    /// What was sent, if the promise is broken.
    pub sent: Option<String>,
    /// What came instead of the echo.
    pub got: Option<String>,
    /// What usually causes that.
    pub cause: Option<&'static str>,
    /// What else there is to say, such as why it was not judged.
    pub note: Option<String>,
}

impl Judgement {
    /// As it is told as soon as it is known.
    pub fn line(&self) -> String {
        let mut text = format!("{:<24} {:<10} {}", self.id, self.verdict.word(), self.promise);
        if let Some(note) = &self.note {
            let _ = write!(text, " ({})", escape::text(note));
        }
        text.push('\n');
        if let (Some(sent), Some(got)) = (&self.sent, &self.got) {
            let again =
                if self.tries > 1 { format!(" (tried {})", counted(self.tries, "time")) } else { String::new() };
            let _ =
                writeln!(text, "{:<36}sent: {}\n{:<36}got:  {}{again}", "", escape::text(sent), "", escape::text(got));
        }
        if let Some(cause) = self.cause {
            let _ = writeln!(text, "{:<36}usual cause: {cause}", "");
        }
        text
    }
}

/// A whole check.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Report {
    /// The version of this format.
    pub format: u32,
    /// The version of echoloop.
    pub version: &'static str,
    /// What this echoloop was built from.
    pub build: Build,
    /// What was checked.
    pub address: String,
    /// Why it ended before all promises were judged, if it did.
    pub ended_early: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Connections that were opened.
    pub connections: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Bytes that were received.
    pub received_bytes: u64,
    /// What was found out about each promise, in the order in which they were judged.
    pub judgements: Vec<Judgement>,
}

impl Report {
    pub(super) fn new(address: String) -> Self {
        Report {
            format: FORMAT,
            version: build::VERSION,
            build: Build::this(),
            address,
            ended_early: None,
            seconds: 0.0,
            connections: 0,
            sent_bytes: 0,
            received_bytes: 0,
            judgements: Vec::new(),
        }
    }

    /// Its text for a file.
    pub(super) fn written(&self, format: Format) -> anyhow::Result<String> {
        Ok(match format {
            Format::Json => escape::json(&serde_json::to_string_pretty(self)?).into_owned() + "\n",
            Format::Junit => self.junit(),
        })
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.judgements.iter().filter(|it| it.verdict == verdict).count()
    }

    /// Whether nothing that is required is broken, and something was found to hold.
    pub fn passes(&self) -> bool {
        self.count(Verdict::Broken) == 0 && self.count(Verdict::Holds) > 0 && self.ended_early.is_none()
    }

    /// The last lines of the text.
    pub fn summary(&self) -> String {
        let broken: Vec<_> =
            self.judgements.iter().filter(|it| it.verdict == Verdict::Broken).map(|it| it.id).collect();
        let mut text = format!(
            "\n{}: {} of {} {}",
            escape::text(&self.address),
            self.count(Verdict::Holds),
            counted(self.judgements.len(), "promise"),
            agreeing(self.count(Verdict::Holds), "holds")
        );
        for (count, word) in [(self.count(Verdict::Note), "noted"), (self.count(Verdict::NotJudged), "not judged")] {
            if count > 0 {
                let _ = write!(text, ", {count} {word}");
            }
        }
        let _ = match &broken[..] {
            [] => write!(text, ", none broken"),
            broken => write!(text, ", {} broken: {}", broken.len(), broken.join(", ")),
        };
        let _ = writeln!(
            text,
            "\n{:.1} s, {}, {} sent, {} received",
            self.seconds,
            counted(self.connections, "connection"),
            ByteSize(self.sent_bytes).display().iec(),
            ByteSize(self.received_bytes).display().iec()
        );
        if let Some(why) = &self.ended_early {
            let _ = writeln!(text, "ended early: {why}");
        }
        text
    }

    /// As JUnit's XML, which CI systems show: a test case for each promise.
    pub fn junit(&self) -> String {
        let (failures, skipped) = (self.count(Verdict::Broken), self.count(Verdict::NotJudged));
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"echoloop check {}\" tests=\"{}\" \
             failures=\"{failures}\" errors=\"{}\" skipped=\"{skipped}\" time=\"{:.3}\">\n",
            xml_text(&self.address),
            self.judgements.len() + usize::from(self.ended_early.is_some()),
            u8::from(self.ended_early.is_some()),
            self.seconds
        );
        for it in &self.judgements {
            let (group, name) = it.id.split_once('.').unwrap_or(("", it.id));
            let name = xml_text(&format!("{name}: {}", it.promise));
            let _ = write!(xml, "  <testcase classname=\"{group}\" name=\"{name}\" time=\"{:.3}\"", it.seconds);
            let told = [&it.sent, &it.got].map(|text| text.clone().unwrap_or_default());
            let told = format!("sent: {}; got: {}; usual cause: {}", told[0], told[1], it.cause.unwrap_or_default());
            let _ = match it.verdict {
                Verdict::Broken => writeln!(xml, "><failure message=\"{}\"/></testcase>", xml_text(&told)),
                Verdict::NotJudged => {
                    let note = it.note.as_deref().unwrap_or_default();
                    writeln!(xml, "><skipped message=\"{}\"/></testcase>", xml_text(note))
                }
                _ => writeln!(xml, "/>"),
            };
        }
        // What was not judged for that is no success.
        if let Some(why) = &self.ended_early {
            let why = xml_text(why);
            let _ = writeln!(
                xml,
                "  <testcase classname=\"check\" name=\"ended early\"><error message=\"{why}\"/></testcase>"
            );
        }
        xml.push_str("</testsuite>\n");
        xml
    }
}

fn xml_text(text: &str) -> String {
    let mut out = String::new();
    for character in escape::text(text).to_string().chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            character => out.push(character),
        }
    }
    out
}

/// The JSON Schema of the files.
pub fn schema() -> String {
    // Plain types cannot fail to be written.
    serde_json::to_string_pretty(&schemars::schema_for!(Report)).unwrap_or_default() + "\n"
}

/// The catalogue, a line for each promise.
pub(super) fn list() -> String {
    let mut text = String::new();
    for promise in catalogue::ALL {
        let _ = writeln!(text, "{:<24} {}", promise.id, promise.sentence);
    }
    text
}

/// The catalogue as sections of a page: `docs/check.md` has them.
pub fn lessons() -> String {
    let mut page = String::new();
    let mut group = "";
    for promise in catalogue::ALL {
        if promise.group() != group {
            group = promise.group();
            let _ = writeln!(page, "## {}\n\n{}\n", heading(group), introduction(promise));
        }
        let _ = writeln!(page, "### {}\n\n**{}.** {}\n", promise.id, capital(promise.sentence), promise.reason);
        let _ = writeln!(page, "- Source: {}.", promise.source.replace('|', "\\|"));
        let _ = writeln!(page, "- What usually breaks it: {}.\n", promise.cause);
    }
    page
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(char::to_uppercase).into_iter().flatten().chain(characters).collect()
}

fn heading(group: &str) -> &'static str {
    match group {
        "bytes" => "Bytes",
        "buffers" => "Buffers",
        "ends" => "Ends",
        "many" => "Many connections",
        "datagrams" => "Datagrams",
        "messages" => "Messages",
        _ => "The process",
    }
}

fn introduction(promise: &Promise) -> &'static str {
    match (promise.about, promise.group()) {
        (About::Datagrams, _) => "Judged with `udp:HOST:PORT`. What is lost is sent again, and is no failure.",
        (About::Messages, _) => "Judged with `--terminator WORD`.",
        (About::Process, _) => "Judged with `--pid PID`, on Linux: what cannot be seen from outside.",
        (_, "bytes") => "What was sent comes back, all of it, and nothing else.",
        (_, "buffers") => "What happens where one side is faster than the other.",
        (_, "ends") => "A connection has two directions, and may end in more ways than one.",
        _ => "One peer's affairs are no other's.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique_and_every_text_is_there() {
        let mut seen = std::collections::BTreeSet::new();
        for promise in catalogue::ALL {
            assert!(seen.insert(promise.id), "{} is there twice", promise.id);
            for text in [promise.sentence, promise.reason, promise.source, promise.cause] {
                assert!(!text.is_empty(), "{}", promise.id);
            }
        }
    }

    #[test]
    fn junit_is_escaped_and_counts() {
        let mut report = Report::new("unix:/tmp/a\"b".to_owned());
        let judgement = |verdict| Judgement {
            id: "bytes.nul",
            promise: "a < b",
            required: true,
            verdict,
            tries: 1,
            seconds: 0.5,
            sent: Some("'\u{1}&\u{202e}\u{e0041}'".to_owned()),
            got: Some(String::new()),
            cause: None,
            note: None,
        };
        report.judgements = vec![judgement(Verdict::Holds), judgement(Verdict::Broken), judgement(Verdict::NotJudged)];
        let xml = report.junit();
        assert!(xml.contains("tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{xml}");
        assert!(
            xml.contains("a &lt; b") && xml.contains("a&quot;b") && xml.contains("\\u{1}&amp;\\u{202e}\\u{e0041}'"),
            "{xml}"
        );
        let text = report.judgements[1].line();
        assert!(text.contains("sent: '\\u{1}&\\u{202e}\\u{e0041}'"), "{text}");
        assert!(!report.passes());
        report.ended_early = Some("a <signal>".to_owned());
        let xml = report.junit();
        assert!(xml.contains("tests=\"4\" failures=\"1\" errors=\"1\"") && xml.contains("a &lt;signal&gt;"), "{xml}");
    }
}
