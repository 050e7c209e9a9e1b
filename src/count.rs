//! How many of something there are, in words: "1 connection is", "1,000 connections are".

use std::fmt;

/// So many of what `noun` names, which is given in the singular; a phrase is made plural at its end.
pub fn counted(number: impl TryInto<u64>, noun: &str) -> Counted<'_> {
    Counted { number: number.try_into().unwrap_or(u64::MAX), noun }
}

/// A number and a noun that agree: see [`counted`].
#[derive(Debug, Clone, Copy)]
pub struct Counted<'a> {
    number: u64,
    noun: &'a str,
}

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.number.to_string();
        for (at, digit) in digits.char_indices() {
            let comma = if at > 0 && (digits.len() - at).is_multiple_of(3) { "," } else { "" };
            write!(f, "{comma}{digit}")?;
        }
        match self.noun {
            noun if self.number == 1 => write!(f, " {noun}"),
            noun if noun.ends_with("ss") || noun.ends_with("ch") => write!(f, " {noun}es"),
            noun => match noun.strip_suffix('y') {
                Some(stem) => write!(f, " {stem}ies"),
                None => write!(f, " {noun}s"),
            },
        }
    }
}

/// The verb that agrees with so many; `verb` is given in the third person singular.
pub fn agreeing(number: impl TryInto<u64>, verb: &str) -> &str {
    match verb {
        verb if number.try_into().is_ok_and(|number| number == 1) => verb,
        "is" => "are",
        "was" => "were",
        "has" => "have",
        "does" => "do",
        verb => verb.strip_suffix('s').unwrap_or(verb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_agrees_with_its_number() {
        for (one, many) in [("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("holds", "hold")] {
            assert_eq!([0, 1, 2, u64::MAX].map(|number| agreeing(number, one)), [many, one, many, many]);
        }
    }

    #[test]
    fn a_noun_agrees_with_its_number() {
        for (number, expected) in [(0, "0 bytes"), (1, "1 byte"), (2, "2 bytes"), (1_234_567, "1,234,567 bytes")] {
            assert_eq!(counted(number, "byte").to_string(), expected);
        }
        for (noun, expected) in [
            ("reply", "1,000 replies"),
            ("address", "1,000 addresses"),
            ("mismatch", "1,000 mismatches"),
            ("idle one", "1,000 idle ones"),
        ] {
            assert_eq!(counted(1000, noun).to_string(), expected);
        }
        assert_eq!(counted(u64::MAX, "turn").to_string(), "18,446,744,073,709,551,615 turns");
        assert_eq!(counted(100_usize, "turn").to_string(), "100 turns");
    }

    /// Where a noun follows a number in another way, because the number is never one: constants apart, these.
    const NEVER_ONE: [&str; 3] =
        ["{} runs merged", "{} messages were never answered", "{size} bytes: the peer fills them"];

    /// Nouns that are counted in texts.
    const NOUNS: [&str; 20] = [
        "address",
        "attempt",
        "byte",
        "connection",
        "datagram",
        "descriptor",
        "error",
        "event",
        "file",
        "line",
        "message",
        "processor",
        "promise",
        "reply",
        "run",
        "second",
        "socket",
        "step",
        "time",
        "turn",
    ];

    fn sources(directory: &std::path::Path, into: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            match path.is_dir() {
                true if name != "simulation" => sources(&path, into),
                false if name.ends_with(".rs") && name != "tests.rs" && name != "simulation.rs" => into.push(path),
                _ => {}
            }
        }
    }

    #[test]
    fn texts_that_count_have_their_nouns_from_here() {
        let mut files = Vec::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        assert!(files.len() > 80, "{files:?}");
        let mut wrong = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for (at, _) in text.match_indices("} ") {
                let Some(open) = text[..at].rfind('{') else { continue };
                let name = &text[open + 1..at];
                let is_placeholder = name.chars().all(|it| it.is_ascii_lowercase() || "_.:0123456789".contains(it));
                let word = text[at + 2..].split(|it: char| !it.is_ascii_alphabetic()).next().unwrap();
                let plural = |noun: &&str| *word == counted(2, noun).to_string()[2..];
                // A size, or a rate.
                let other =
                    text[at + 2..].starts_with("messages, {}{merged}") || text[at + 2 + word.len()..].starts_with("/s");
                let rest: String = text[open..].chars().take(60).collect();
                let allowed = NEVER_ONE.iter().any(|text| rest.starts_with(text));
                let counts = is_placeholder && !other && NOUNS.iter().any(plural);
                if counts && !allowed {
                    wrong.push(format!("{}: {rest:?}", file.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "wrong where the number is one: {wrong:#?}");
    }

    #[test]
    fn verbs_that_agree_are_from_here() {
        let mut files = Vec::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let verbs = ["is", "was", "has", "does", "holds"].map(|verb| (verb, agreeing(2, verb)));
        for file in files.iter().filter(|file| !file.ends_with("count.rs")) {
            let text = std::fs::read_to_string(file).unwrap();
            let program = text.split("#[cfg(test)]").next().unwrap();
            for line in program.lines().filter(|line| line.contains(" else {")) {
                let has = |verb| line.contains(&format!("{{ \"{verb}\" }}"));
                let by_hand = verbs.iter().any(|(one, many)| has(*one) && has(*many));
                assert!(!by_hand, "{}: {line}", file.display());
            }
        }
    }
}
