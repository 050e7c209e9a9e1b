//! What a run says on standard error while it lasts, and its progress bar there. A thread of its own writes it: a terminal
//! that is stopped (Ctrl-S), or a reader that is slow, must not hold the load up.

use std::io::{self, IsTerminal};
use std::mem::take;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use log::{Level, log_enabled};
use rustix::termios::tcgetwinsize;

use crate::count::counted;
use crate::outlet::{Outlet, Wording};
use crate::{escape, stdio};

/// Bytes that may wait for a reader; what does not fit is left out.
const LIMIT: usize = 64 * 1024;

/// How long the end of the run waits for a reader.
const FINISH: Duration = Duration::from_secs(1);

/// What is said, and a progress bar, which is hidden if standard error is no terminal, or has the log's lines.
pub(super) struct Progress {
    pub bar: ProgressBar,
    /// `None`: nobody is to hear of it.
    screen: Option<Arc<Screen>>,
}

impl Progress {
    pub fn new() -> io::Result<Self> {
        let outlet = Outlet::new("progress", LIMIT, stdio::stderr(), Frames)?;
        let screen = Arc::new(Screen { frame: Mutex::default(), outlet });
        let bar = if io::stderr().is_terminal() && !log_enabled!(Level::Debug) {
            let target = ProgressDrawTarget::term_like_with_hz(Box::new(Terminal(screen.clone())), 20);
            let style = ProgressStyle::with_template("{prefix:>10} {bar:24} {msg}").expect("the template is valid");
            ProgressBar::with_draw_target(Some(0), target).with_style(style)
        } else {
            ProgressBar::hidden()
        };
        Ok(Self { bar, screen: Some(screen) })
    }

    #[cfg(test)]
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), screen: None }
    }

    /// Says it above the bar, if there is one.
    pub fn say(&self, line: &str) {
        let line = escape::text(line).to_string();
        match &self.screen {
            Some(screen) if self.bar.is_hidden() => {
                let bytes = format!("{line}\n").into_bytes();
                let length = bytes.len();
                screen.outlet.push(bytes, length, 1);
            }
            _ => self.bar.println(&line),
        }
    }

    /// Clears the bar, and waits for the reader, so that something else can be printed.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if let Some(screen) = &self.screen {
            screen.outlet.finish(Instant::now() + FINISH);
        }
    }
}

impl Drop for Progress {
    /// Clears the bar after a run that failed, whose error is printed next.
    fn drop(&mut self) {
        self.finish();
    }
}

struct Screen {
    /// What is drawn next, in the terminal's language (ECMA-48).
    frame: Mutex<Vec<u8>>,
    outlet: Outlet<Vec<u8>>,
}

struct Terminal(Arc<Screen>);

impl Terminal {
    fn draw(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.frame.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(())
    }

    fn move_cursor(&self, n: usize, direction: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { self.draw(format!("\x1b[{n}{direction}").as_bytes()) }
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Terminal")
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        tcgetwinsize(io::stderr()).map_or(80, |size| if size.ws_col == 0 { 80 } else { size.ws_col })
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(text.as_bytes())?;
        self.draw(b"\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text.as_bytes())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw(b"\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let frame = take(&mut *self.0.frame.lock().unwrap_or_else(PoisonError::into_inner));
        let length = frame.len();
        self.0.outlet.push(frame, length, 0);
        Ok(())
    }
}

/// Frames and lines are written as they are. Frames are not counted when they are left out: the next one replaces them.
struct Frames;

impl Wording for Frames {
    type Item = Vec<u8>;

    fn item(&mut self, frame: Vec<u8>, out: &mut Vec<u8>) {
        out.extend_from_slice(&frame);
    }

    fn left_out(&mut self, lines: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{} missing here\n", counted(lines, "line")).as_bytes());
    }

    fn failed(&mut self, _error: &io::Error) {}
}
