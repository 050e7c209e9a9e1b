//! How much of what was sent has come back.
//!
//! A count would take a server's greeting, or an answer that is no echo, for what was sent. So bytes are compared: those
//! that were sent must come in their order, whatever else comes before them or in between.

use std::collections::VecDeque;

use memchr::memchr;

/// Bytes that are remembered until they have come back. If more are under way, at a server that keeps much, they are only
/// counted from there on: memory is constant.
const REMEMBERED: usize = 4 << 20;

/// What has been sent, and has not come back.
#[derive(Debug)]
pub(super) enum Echoed {
    Compared(VecDeque<u8>),
    Counted(u64),
}

impl Echoed {
    pub fn new() -> Self {
        Echoed::Compared(VecDeque::new())
    }

    /// Bytes that have not come back.
    pub fn missing(&self) -> u64 {
        match self {
            Echoed::Compared(bytes) => bytes.len() as u64,
            Echoed::Counted(count) => *count,
        }
    }

    pub fn sent(&mut self, bytes: &[u8]) {
        match self {
            Echoed::Compared(missing) if missing.len() + bytes.len() <= REMEMBERED => missing.extend(bytes),
            _ => *self = Echoed::Counted(self.missing() + bytes.len() as u64),
        }
    }

    pub fn received(&mut self, mut bytes: &[u8]) {
        let missing = match self {
            Echoed::Compared(missing) => missing,
            Echoed::Counted(count) => return *count = count.saturating_sub(bytes.len() as u64),
        };
        while let Some(&next) = missing.front() {
            let Some(at) = memchr(next, bytes) else { return };
            bytes = &bytes[at..];
            let expected = missing.as_slices().0;
            let length = expected.len().min(bytes.len());
            let same = if expected[..length] == bytes[..length] {
                length
            } else {
                expected.iter().zip(bytes).take_while(|(one, other)| one == other).count()
            };
            missing.drain(..same);
            bytes = &bytes[same..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn missing(sent: &[u8], received: &[u8]) -> u64 {
        let mut echoed = Echoed::new();
        echoed.sent(sent);
        echoed.received(received);
        echoed.missing()
    }

    #[test]
    fn greetings_and_other_answers_are_no_echo() {
        assert_eq!(missing(b"hello\n", b"220 ready\nhello\n"), 0);
        assert_eq!(missing(b"hello\n", b"go away!\n"), 6);
        assert_eq!(missing(b"hello\n", b"hexlo\n"), 3);
        assert_eq!(missing(b"hello\n", b"hello"), 1);
        assert_eq!(missing(b"hello\n", b"hello\nhello\n"), 0);
    }

    #[test]
    fn more_than_is_remembered_is_counted() {
        let mut echoed = Echoed::new();
        for _ in 0..3 {
            echoed.sent(&vec![b'x'; REMEMBERED / 2]);
        }
        assert_eq!(echoed.missing(), REMEMBERED as u64 / 2 * 3);
        echoed.received(&vec![b'y'; REMEMBERED]);
        assert_eq!(echoed.missing(), REMEMBERED as u64 / 2);
        echoed.received(&vec![b'y'; REMEMBERED]);
        assert_eq!(echoed.missing(), 0);
    }

    proptest! {
        #[test]
        fn an_echo_is_found_however_cut_and_surrounded(
            pieces in prop::collection::vec(("[ab]{0,5}", "[abc]{0,3}", 0usize..6), 0..12),
        ) {
            let mut echoed = Echoed::new();
            let mut under_way = VecDeque::new();
            for (sent, noise, come) in pieces {
                echoed.sent(sent.as_bytes());
                under_way.extend(sent.bytes());
                echoed.received(noise.as_bytes());
                let come: Vec<u8> = under_way.drain(..come.min(under_way.len())).collect();
                echoed.received(&come);
                prop_assert!(echoed.missing() <= under_way.len() as u64);
            }
            echoed.received(under_way.make_contiguous());
            prop_assert_eq!(echoed.missing(), 0);
        }
    }
}
