//! Standard input, read by a thread of its own: in pieces, of which a few wait at any time.
//!
//! Standard input alone cannot be polled: a file is always ready, and a terminal must not be switched to non-blocking
//! under the shell's feet. The next piece is read when there is room for it, so a file of any size passes through
//! constant memory.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use mio::Waker;

use crate::{limits, stdio};

/// Bytes taken from standard input at once, and so the most that is compared with the terminator.
const PIECE: u64 = 64 * 1024;

/// What the thread at standard input has found.
#[derive(Debug)]
pub(super) enum Item {
    /// The next bytes; `line_ends` if a line ends with them.
    Piece { bytes: Vec<u8>, line_ends: bool },
    /// The end of the input.
    End,
    /// It cannot be read any further.
    Failed(io::Error),
}

/// What has been read, and not been taken yet.
#[derive(Debug)]
pub(super) struct Input {
    items: Receiver<Item>,
    /// The next one, so that whether there is one is plain state.
    next: Option<Item>,
    /// Somebody types it.
    pub terminal: bool,
}

impl Input {
    /// Has standard input read by a thread, a line at a time or in blocks. `waker` tells when there is some.
    pub fn start(by_line: bool, waker: Arc<Waker>) -> io::Result<Input> {
        let (sender, items) = sync_channel(1);
        limits::start_thread("input", move || read(stdio::stdin(), by_line, &sender, &waker))?;
        Ok(Input::new(items, io::stdin().is_terminal()))
    }

    /// An input of what comes through `items`.
    pub fn new(items: Receiver<Item>, terminal: bool) -> Input {
        Input { items, next: None, terminal }
    }

    /// Looks whether there is something now. To be called after every wait.
    pub fn refill(&mut self) {
        if self.next.is_none() {
            self.next = match self.items.try_recv() {
                Ok(item) => Some(item),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Item::End),
            };
        }
    }

    /// What comes next, if that is known yet.
    pub fn peek(&self) -> Option<&Item> {
        self.next.as_ref()
    }

    /// Takes what comes next.
    pub fn take(&mut self) -> Option<Item> {
        let item = self.next.take();
        self.refill();
        item
    }

    /// Bytes that were read and have not been taken, as far as it is known.
    pub fn waiting(&self) -> u64 {
        match &self.next {
            Some(Item::Piece { bytes, .. }) => bytes.len() as u64,
            _ => 0,
        }
    }
}

/// A line without what ends it.
pub(super) fn without_newline(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Reads all there is, and passes it on.
fn read(input: impl Read, by_line: bool, sender: &SyncSender<Item>, waker: &Waker) {
    let mut input = BufReader::with_capacity(PIECE as usize, input);
    loop {
        let item = next_item(&mut input, by_line);
        let last = !matches!(item, Item::Piece { .. });
        let gone = sender.send(item).is_err();
        wake(waker);
        if gone || last {
            return;
        }
    }
}

/// Wakes the loop from another thread, and asks again if that fails: what the thread has to tell must not be forgotten.
pub(super) fn wake(waker: &Waker) {
    while waker.wake().is_err() {
        thread::sleep(Duration::from_millis(10));
    }
}

fn next_item(input: &mut impl BufRead, by_line: bool) -> Item {
    let mut bytes = Vec::new();
    let mut piece = input.take(PIECE);
    let read = if by_line {
        piece.read_until(b'\n', &mut bytes)
    } else {
        // Not `read_to_end`, which would wait for the piece to be full: what a pipe has is sent.
        bytes.resize(PIECE as usize, 0);
        piece.read(&mut bytes).inspect(|&count| bytes.truncate(count))
    };
    match read {
        Ok(0) => Item::End,
        Ok(count) => {
            // Cut short by neither newline nor size, it is the last line, and has no newline.
            let line_ends = bytes.ends_with(b"\n") || (by_line && (count as u64) < PIECE);
            Item::Piece { bytes, line_ends }
        }
        Err(error) => Item::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &[u8], by_line: bool) -> Vec<(Vec<u8>, bool)> {
        let mut input = BufReader::new(text);
        let mut items = Vec::new();
        while let Item::Piece { bytes, line_ends } = next_item(&mut input, by_line) {
            items.push((bytes, line_ends));
        }
        items
    }

    #[test]
    fn lines_are_read_one_by_one() {
        let lines = [(b"one\r\n".to_vec(), true), (b"\n".to_vec(), true), (b"three".to_vec(), true)];
        assert_eq!(items(b"one\r\n\nthree", true), lines);
    }

    #[test]
    fn a_line_longer_than_a_piece_is_cut() {
        let line = [vec![b'x'; PIECE as usize + 1], b"\n".to_vec()].concat();
        let lengths: Vec<_> = items(&line, true).iter().map(|(bytes, ends)| (bytes.len(), *ends)).collect();
        assert_eq!(lengths, [(PIECE as usize, false), (2, true)]);
    }

    #[test]
    fn newlines_disappear_with_their_carriage_returns() {
        for (line, bare) in [("a\n", "a"), ("a\r\n", "a"), ("a\r", "a\r"), ("a", "a"), ("\n", "")] {
            assert_eq!(without_newline(line.as_bytes()), bare.as_bytes());
        }
    }
}
