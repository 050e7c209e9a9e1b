//! Standard output, written by a thread of its own, and what is looked for in what comes back.
//!
//! The loop never waits for the reader of our output. One buffer is being written while another one is being filled; when
//! that is full, nothing more is received until there is room. So memory is bounded, and the peer's TCP is held up.
//!
//! A file or a pipe gets the bytes as they come. A terminal would obey what is in them, so there control characters are
//! escaped.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use memchr::memmem;
use mio::Waker;

use super::Config;
use super::input::wake;
use crate::{escape, hex, limits, stdio};

/// Bytes that may wait before nothing more is received.
const FULL: usize = 256 * 1024;

/// Standard output failed.
#[derive(Debug)]
pub(super) struct OutputError(pub io::Error);

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

/// What the user gets to see.
pub(super) struct Screen {
    /// What has not been handed to the writer yet.
    filling: Vec<u8>,
    /// The other buffer, while the writer has nothing to do.
    spare: Option<Vec<u8>>,
    to_writer: SyncSender<Vec<u8>>,
    from_writer: Receiver<io::Result<Vec<u8>>>,
    form: Form,
    expected: Option<Expected>,
}

/// How what comes back is shown.
pub(super) enum Form {
    /// As it is.
    Bytes,
    /// As lines that a terminal can show; with the beginning of a character whose rest has not come.
    Lines(Vec<u8>),
    /// As a hex dump; with the position it has got to.
    Hex(u64),
}

impl Screen {
    /// Standard output, as `config` wants it. `waker` tells when something has been written.
    pub fn start(config: &Config, waker: Arc<Waker>) -> io::Result<Screen> {
        let (to_writer, buffers) = sync_channel(1);
        let (written, from_writer) = sync_channel(1);
        limits::start_thread("output", move || write(&buffers, &written, &waker))?;
        let form = match stdio::stdout().is_terminal() {
            _ if config.hex => Form::Hex(0),
            true => Form::Lines(Vec::new()),
            false => Form::Bytes,
        };
        Ok(Screen::new(config, form, to_writer, from_writer))
    }

    /// A screen whose writer takes buffers from one channel, and gives them back over the other.
    pub fn new(config: &Config, form: Form, to: SyncSender<Vec<u8>>, from: Receiver<io::Result<Vec<u8>>>) -> Screen {
        Screen {
            filling: Vec::new(),
            spare: Some(Vec::new()),
            to_writer: to,
            from_writer: from,
            form,
            expected: config.expect.as_ref().map(|text| Expected::new(text.as_bytes())),
        }
    }

    /// Prints what has come back.
    pub fn received(&mut self, bytes: &[u8]) {
        if let Some(expected) = &mut self.expected {
            expected.look(bytes);
        }
        match &mut self.form {
            Form::Bytes => self.filling.extend_from_slice(bytes),
            Form::Lines(begun) => {
                begun.extend_from_slice(bytes);
                let rest = begun.split_off(begun.len() - escape::unfinished(begun));
                let _ = write!(self.filling, "{}", escape::lines(begun)); // memory takes everything
                *begun = rest;
            }
            Form::Hex(position) => {
                hex::dump(*position, bytes, &mut self.filling);
                *position += bytes.len() as u64;
            }
        }
    }

    /// Shows what has waited for more that does not come.
    pub fn finish(&mut self) {
        if let Form::Lines(begun) = &mut self.form {
            let _ = write!(self.filling, "{}", escape::lines(begun));
            begun.clear();
        }
    }

    /// What comes back from here on does not continue what came before: it is another datagram.
    pub fn cut(&mut self) {
        self.finish();
        if let Some(expected) = &mut self.expected {
            expected.seen.clear();
        }
    }

    /// Ends the line of a reply to which no newline was sent. A hex dump has its own lines.
    pub fn newline(&mut self) {
        if !matches!(self.form, Form::Hex(_)) {
            self.say("\n");
        }
    }

    /// Prints something of our own.
    pub fn say(&mut self, text: &str) {
        self.finish();
        self.filling.extend_from_slice(text.as_bytes());
    }

    /// Whether to receive no more for now.
    pub fn is_full(&self) -> bool {
        self.filling.len() >= FULL
    }

    /// Whether everything has been written.
    pub fn is_flushed(&self) -> bool {
        self.filling.is_empty() && self.spare.is_some()
    }

    /// Whether what was to come back has come; `None` if nothing was asked for.
    pub fn expected(&self) -> Option<bool> {
        self.expected.as_ref().map(|expected| expected.found)
    }

    /// Hands to the writer what there is, if it has nothing to do. After that either nothing waits, or the writer will
    /// wake the poll.
    pub fn turn(&mut self) -> Result<(), OutputError> {
        if let Ok(written) = self.from_writer.try_recv() {
            let mut buffer = written.map_err(OutputError)?;
            buffer.clear();
            self.spare = Some(buffer);
        }
        if !self.filling.is_empty()
            && let Some(spare) = self.spare.take()
        {
            let full = std::mem::replace(&mut self.filling, spare);
            // The writer has nothing to do, so there is room; it ends only after an error, which has been reported.
            let _ = self.to_writer.try_send(full);
        }
        Ok(())
    }
}

/// Writes each buffer, and gives it back.
fn write(buffers: &Receiver<Vec<u8>>, written: &SyncSender<io::Result<Vec<u8>>>, waker: &Waker) {
    let mut stdout = stdio::stdout();
    for buffer in buffers {
        let outcome = stdout.write_all(&buffer).map(|()| buffer);
        let failed = outcome.is_err();
        let gone = written.send(outcome).is_err();
        wake(waker);
        if gone || failed {
            return;
        }
    }
}

/// A text that is looked for in a stream, however it is cut.
struct Expected {
    finder: memmem::Finder<'static>,
    /// The last bytes, one fewer than the text has: it may have begun in them.
    seen: Vec<u8>,
    found: bool,
}

impl Expected {
    fn new(text: &[u8]) -> Expected {
        Expected { finder: memmem::Finder::new(text).into_owned(), seen: Vec::new(), found: false }
    }

    fn look(&mut self, bytes: &[u8]) {
        if self.found {
            return;
        }
        self.seen.extend_from_slice(bytes);
        self.found = self.finder.find(&self.seen).is_some();
        let kept = self.finder.needle().len() - 1;
        self.seen.drain(..self.seen.len().saturating_sub(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_expected_text_is_found_however_cut(text in "[ab]{1,4}", stream in "[ab]{0,40}", cuts in prop::collection::vec(1usize..6, 0..20)) {
            let mut expected = Expected::new(text.as_bytes());
            let mut rest = stream.as_bytes();
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                expected.look(piece);
                rest = left;
            }
            expected.look(rest);
            prop_assert_eq!(expected.found, stream.contains(&text));
        }
    }
}
