//! What others said, written so that it can be shown: on a terminal, in a log, in a report.
//!
//! Control characters could move the cursor or forge a line, characters that change the direction of text or are not
//! seen at all could make a text look like another (Unicode Technical Report 36; Trojan Source, CVE-2021-42574), and
//! bytes that are not UTF-8 are no text. All of them are written as escapes, as Rust has them.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// Bytes, unambiguously: a backslash is written as two, so that whatever follows one alone is an escape.
pub fn bytes(bytes: &[u8]) -> Escaped<'_> {
    Escaped { bytes, backslash: true, lines: false }
}

/// A text for people, in which a backslash is one.
pub fn text(text: &str) -> Escaped<'_> {
    Escaped { bytes: text.as_bytes(), backslash: false, lines: false }
}

/// Bytes for people, of which lines and tabs are kept. A carriage return is part of what ends a line, and nothing else.
pub fn lines(bytes: &[u8]) -> Escaped<'_> {
    Escaped { bytes, backslash: false, lines: true }
}

/// How many of the last bytes cannot be shown before others have come: the beginning of a character, or of a CR LF.
pub fn unfinished(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(3)..]; // a character has at most four bytes (RFC 3629)
    let is_beginning = |from: &usize| {
        let error = str::from_utf8(&last[*from..]).err();
        error.is_some_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    match last.last() {
        Some(b'\r') => 1,
        _ => (0..last.len()).find(is_beginning).map_or(0, |from| last.len() - from),
    }
}

/// JSON whose strings show on a terminal what is in them, and which means the same. The characters concerned are in
/// strings alone, and JSON has an escape for each (RFC 8259, 7); ASCII control characters have theirs already.
pub fn json(json: &str) -> Cow<'_, str> {
    let escapes = |it: char| it >= '\u{7f}' && (it.is_control() || is_unseen(it));
    if !json.contains(escapes) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len() + 64);
    for character in json.chars() {
        match character {
            character if escapes(character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            character => out.push(character),
        }
    }
    out.into()
}

/// Something that is escaped as it is displayed.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a> {
    bytes: &'a [u8],
    backslash: bool,
    lines: bool,
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.utf8_chunks() {
            let mut plain = chunk.valid();
            while let Some(at) = plain.find(|character| self.escapes(character)) {
                let (before, rest) = plain.split_at(at);
                let mut characters = rest.chars();
                f.write_str(before)?;
                match characters.next() {
                    Some('\r') if self.lines && characters.as_str().starts_with('\n') => f.write_str("\r")?,
                    Some(character) if character.is_ascii() && self.backslash => {
                        write!(f, "{}", (character as u8).escape_ascii())?;
                    }
                    Some(character) => write!(f, "{}", character.escape_default())?,
                    None => {}
                }
                plain = characters.as_str();
            }
            f.write_str(plain)?;
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

impl Escaped<'_> {
    fn escapes(&self, character: char) -> bool {
        if self.lines && matches!(character, '\n' | '\t') {
            return false;
        }
        (character == '\\' && self.backslash) || character.is_control() || is_unseen(character)
    }
}

/// Whether a character is one that is not seen: Default_Ignorable_Code_Point of the Unicode Character Database
/// (DerivedCoreProperties.txt), to which all of Bidi_Control belong, zero-width characters and tags; and those that end
/// lines or annotate.
fn is_unseen(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_printed_cannot_harm_a_terminal() {
        let message = b"plain \xc3\xa9 \xff\xfe \x1b[31m \x07 \\ tab\t \xc2\x9b0m \xe2\x80\xae quote'";
        assert_eq!(bytes(message).to_string(), r"plain é \xff\xfe \x1b[31m \x07 \\ tab\t \u{9b}0m \u{202e} quote'");
        assert_eq!(text("C:\\x\r\n\x1b").to_string(), r"C:\x\r\n\u{1b}");
    }

    #[test]
    fn characters_that_hide_or_turn_text_are_escaped() {
        let bidi_control =
            "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
        assert_eq!(bidi_control.chars().count(), 12);
        let zero_width = "\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{180e}\u{ad}\u{34f}";
        let tags = "\u{e0001}\u{e0020}\u{e0041}\u{e007f}\u{e0100}\u{fe0f}";
        for character in
            bidi_control.chars().chain(zero_width.chars()).chain(tags.chars()).chain(['\u{2028}', '\u{2029}'])
        {
            let expected = character.escape_unicode().to_string();
            assert_eq!(bytes(character.to_string().as_bytes()).to_string(), expected);
            assert_eq!(text(&character.to_string()).to_string(), expected);
        }
        let seen = "äöü — 漢字 العربية עברית 😀 \u{301}";
        assert_eq!(bytes(seen.as_bytes()).to_string(), seen);
    }

    #[test]
    fn lines_stay_lines_on_a_terminal() {
        let message = b"one\r\n\ttwo\rthree \\ \x1b[2J\xff\n\n\xe2\x80\xae\r";
        assert_eq!(lines(message).to_string(), "one\r\n\ttwo\\rthree \\ \\u{1b}[2J\\xff\n\n\\u{202e}\\r");
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(
            whole in prop::collection::vec(prop::sample::select(&b"a\r\n\x1b\xe2\x80\xae\xf0\x9f\x98\x80\xff"[..]), 0..12),
            cut in 0usize..12,
        ) {
            let (one, other) = whole.split_at(cut.min(whole.len()));
            let (now, later) = one.split_at(one.len() - unfinished(one));
            let in_two = format!("{}{}", lines(now), lines(&[later, other].concat()));
            prop_assert_eq!(in_two, lines(&whole).to_string());
        }

        #[test]
        fn json_means_the_same_and_shows_its_content(string in "\\PC*|.{0,20}|[\u{7f}-\u{a0}\u{200b}-\u{202e}\u{e0000}-\u{e007f}\"\\\\]*") {
            for plain in [serde_json::to_string(&[&string]), serde_json::to_string_pretty(&[&string])] {
                let escaped = json(&plain.unwrap()).into_owned();
                prop_assert!(!escaped.chars().any(|it| (it.is_control() && it != '\n') || is_unseen(it)), "{escaped:?}");
                prop_assert_eq!(&serde_json::from_str::<[String; 1]>(&escaped).unwrap()[0], &string);
            }
        }

        #[test]
        fn what_is_escaped_is_one_line_and_unambiguous(one: Vec<u8>, other: Vec<u8>, string in "\\PC*|[\\\\nx0-9a-f]*") {
            let escaped = bytes(&one).to_string();
            prop_assert!(!escaped.chars().any(|it| it.is_control() || is_unseen(it)));
            prop_assert_eq!(one == other, escaped == bytes(&other).to_string());
            prop_assert_eq!(string.as_bytes() == one, escaped == bytes(string.as_bytes()).to_string());
        }
    }
}
