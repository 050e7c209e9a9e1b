//! Messages for standard output, which must not hold the loop up: the lines of a turn are handed to an [`Outlet`] at its
//! end.
//!
//! This module knows lines, and not what is in them.

use std::io::{self, Write};
use std::time::Instant;

use indicatif::HumanCount;
use log::warn;

use crate::outlet::{Outlet, Wording};

/// The most bytes of lines that wait for their reader; a turn may add as many.
const LIMIT: usize = 1024 * 1024;

/// Prints lines without ever waiting for their reader.
pub(super) struct Printer {
    /// The lines of this turn.
    lines: Vec<u8>,
    /// How many they are.
    count: u64,
    /// Lines were left out, and that has been said.
    behind: bool,
    outlet: Outlet<Vec<u8>>,
}

/// A line that is being written. Writing to it fails if there is no memory.
pub(super) struct Line<'a>(&'a mut Vec<u8>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines are printed as they are. How many are missing is said in the log, because what is printed may be parsed.
struct Lines;

impl Wording for Lines {
    type Item = Vec<u8>;

    fn item(&mut self, lines: Vec<u8>, out: &mut Vec<u8>) {
        *out = lines;
    }

    fn left_out(&mut self, lines: u64, _: &mut Vec<u8>) {
        warn!("lines that could not be printed: {}", HumanCount(lines));
    }

    fn failed(&mut self, error: &io::Error) {
        warn!("cannot write to standard output: {error}; it is tried again");
    }
}

impl Printer {
    /// Prints to `out`, which may block and may fail.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let outlet = Outlet::new("printer", LIMIT, out, Lines)?;
        Ok(Printer { lines: Vec::new(), count: 0, behind: false, outlet })
    }

    /// Prints the line that `write` makes, or leaves it out if too much waits.
    pub fn print(&mut self, write: impl FnOnce(&mut Line<'_>) -> io::Result<()>) {
        let before = self.lines.len();
        if before >= LIMIT || write(&mut Line(&mut self.lines)).is_err() {
            self.lines.truncate(before);
            self.outlet.leave_out(1);
            self.fall_behind();
        } else {
            self.count += 1;
        }
    }

    /// Hands the turn's lines over. To be called once a turn.
    pub fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let mut next = Vec::new();
        let _ = next.try_reserve(self.lines.len()); // if there is no memory now, there may be some when it is needed
        let lines = std::mem::replace(&mut self.lines, next);
        let bytes = lines.len();
        if self.outlet.push(lines, bytes, std::mem::take(&mut self.count)) {
            self.behind = false;
        } else {
            self.fall_behind();
        }
    }

    /// Messages that were not printed, because their reader was too slow or had gone.
    pub fn unprinted(&self) -> u64 {
        self.outlet.lost()
    }

    /// Waits until everything is printed, or until then.
    pub fn finish(&mut self, until: Instant) {
        self.flush();
        if !self.outlet.finish(until) {
            warn!("no reader on standard output: the last messages are not printed");
        }
    }

    fn fall_behind(&mut self) {
        if !std::mem::replace(&mut self.behind, true) {
            warn!("standard output is read more slowly than messages come: some are not printed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outlet::tests::gate;
    use std::sync::mpsc;
    use std::time::Duration;

    fn gated() -> (Printer, mpsc::Sender<io::Result<()>>, mpsc::Receiver<String>) {
        let (out, open, written) = gate();
        (Printer::new(out).unwrap(), open, written)
    }

    fn print(printer: &mut Printer, text: &str) {
        printer.print(|out| out.write_all(text.as_bytes()));
        printer.flush();
    }

    #[test]
    fn stopped_reader_takes_bounded_memory_misses_rest() {
        let (mut printer, open, written) = gated();
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..10_000 {
            print(&mut printer, &line);
        }
        assert!(printer.behind);
        drop(open);
        printer.finish(Instant::now() + Duration::from_secs(30));
        assert_eq!(written.try_iter().map(|piece| piece.len()).sum::<usize>(), LIMIT);
        print(&mut printer, "it reads on\n");
        printer.finish(Instant::now() + Duration::from_secs(30));
        assert_eq!(written.recv().unwrap(), "it reads on\n");
        assert!(!printer.behind);
    }

    #[test]
    fn one_turn_makes_a_bounded_number_of_lines() {
        let (mut printer, _open, _written) = gated();
        for _ in 0..10_000 {
            printer.print(|out| out.write_all(&[b'x'; 1000]));
        }
        assert!(printer.lines.len() <= LIMIT + 1000);
    }
}
