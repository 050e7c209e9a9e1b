//! Who answers: backends behind one address, told apart by the line that each sends first (`--by-greeting`).

use std::collections::{BTreeMap, HashMap};

use crate::bench::ledger::BackendNumber;

/// The longest greeting.
pub(super) const MAX_GREETING: usize = 1024;

/// Backends that are told apart. A greeting may be different on each connection, and each has histograms of its own.
const MAX_BACKENDS: usize = 64;

/// What the others are called.
const OTHERS: &str = "(others)";

/// The backends that have greeted so far.
#[derive(Default)]
pub(in crate::bench) struct Backends {
    numbers: HashMap<String, BackendNumber>,
    /// Their greetings, each with how many connections received it.
    all: Vec<(String, u64)>,
    /// What has come of the greetings that are awaited, by their slots.
    awaited: BTreeMap<u32, Vec<u8>>,
}

/// What has come of a greeting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    /// All of it, and what came behind it.
    Of(BackendNumber, &'a [u8]),
    /// Its end has not come.
    Unfinished,
    /// It is too long to be one.
    Endless,
}

impl Backends {
    /// A slot's connection is there, and is to greet.
    pub fn await_greeting(&mut self, slot: u32) {
        self.awaited.insert(slot, Vec::new());
    }

    /// Whether a slot's connection is there, and has not greeted.
    pub fn awaits(&self, slot: u32) -> bool {
        self.awaited.contains_key(&slot)
    }

    /// A slot's connection is gone.
    pub fn forget(&mut self, slot: u32) {
        self.awaited.remove(&slot);
    }

    /// Takes in what a slot has received before its connection had greeted.
    pub(super) fn take<'a>(&mut self, slot: u32, bytes: &'a [u8]) -> Heard<'a> {
        let Some(line) = self.awaited.get_mut(&slot) else { return Heard::Unfinished };
        let end = memchr::memchr(b'\n', bytes);
        line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        match end {
            _ if line.len() > MAX_GREETING => Heard::Endless,
            None => Heard::Unfinished,
            Some(end) => {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
                self.awaited.remove(&slot);
                Heard::Of(self.number(text), &bytes[end + 1..])
            }
        }
    }

    /// The number of the backend with this greeting, which another connection has received.
    fn number(&mut self, text: String) -> BackendNumber {
        let text =
            if self.all.len() < MAX_BACKENDS || self.numbers.contains_key(&text) { text } else { OTHERS.to_owned() };
        let next = self.all.len() as BackendNumber;
        let number = *self.numbers.entry(text.clone()).or_insert(next);
        if number == next {
            self.all.push((text, 0));
        }
        self.all[number as usize].1 += 1;
        number
    }

    /// All of them in the order in which they greeted first: the number, the greeting, and how many connections received it.
    pub fn all(&self) -> impl Iterator<Item = (BackendNumber, &str, u64)> {
        (0..).zip(&self.all).map(|(number, (text, connections))| (number, text.as_str(), *connections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_in_pieces_is_put_together() {
        let mut backends = Backends::default();
        for slot in [0, 1, 2] {
            backends.await_greeting(slot);
        }
        assert_eq!(backends.take(0, b"po"), Heard::Unfinished);
        assert_eq!(backends.take(1, b"node\r\n"), Heard::Of(0, b""));
        assert_eq!(backends.take(0, b"d\nmore"), Heard::Of(1, b"more"));
        assert_eq!(backends.take(2, b"node\n"), Heard::Of(0, b""), "the same as before");
        assert_eq!(backends.all().collect::<Vec<_>>(), [(0, "node", 2), (1, "pod", 1)]);
    }

    #[test]
    fn endless_greeting_is_refused() {
        let mut backends = Backends::default();
        backends.await_greeting(0);
        assert_eq!(backends.take(0, &[b'x'; MAX_GREETING]), Heard::Unfinished);
        assert_eq!(backends.take(0, b"x\n"), Heard::Endless);
    }

    #[test]
    fn greetings_without_end_share_one_tally() {
        let mut backends = Backends::default();
        for slot in 0..1000 {
            backends.await_greeting(slot);
            backends.take(slot, format!("{slot}\n").as_bytes());
        }
        let all: Vec<_> = backends.all().collect();
        assert_eq!((all.len(), all[MAX_BACKENDS]), (MAX_BACKENDS + 1, (MAX_BACKENDS as BackendNumber, OTHERS, 936)));
    }
}
