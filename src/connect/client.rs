//! The line client over a stream: a protocol on the reactor, and what it makes of its input and its output.
//!
//! All that it does in a turn, and how long it may sleep after it, follows from its state: what has been sent and has come
//! back, what the input has next, whether the screen has room. How it ended does too: whatever was read from the input,
//! or is known to wait in it, and did not come back is an error.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use log::debug;
use mio::Token;

use super::console::Console;
use super::echoed::Echoed;
use super::input::{Input, Item, without_newline};
use super::line::{Control, Line};
use super::screen::Screen;
use super::{Config, PROMPT, unexpected};
use crate::count::counted;
use crate::escape;
use crate::reactor::{CloseReason, Protocol, Reactor, Readiness, Settings, Source, Stream, Transport};

/// How long an input that is neither a terminal nor has ended may take, when the peer has closed the connection, to say
/// whether there was more to send. Its writer may not have got there yet.
const INPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How far the conversation has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Input is sent as it comes.
    Talking,
    /// The terminator has been sent; its echo is the end.
    Leaving,
    /// The input has ended, our side is closed, and the rest is awaited.
    Finishing,
}

/// A conversation with one peer.
pub(super) struct Client<'a, S: Stream> {
    config: &'a Config,
    reactor: Reactor<Line<S>, Reception>,
    token: Token,
    control: Rc<Control>,
    /// Somebody types, and reads what comes back.
    interactive: bool,
    prompted: bool,
    phase: Phase,
    echoed: Echoed,
    /// A bare word has been sent, and its newline is to be printed after its echo.
    newline_owed: bool,
    /// The next piece of input is in the middle of a line.
    inside_line: bool,
    input_failure: Option<io::Error>,
    now: Instant,
    /// Since when a reply is due and nothing has come.
    silent_since: Instant,
    /// When the connection was found to be gone.
    gone_at: Option<Instant>,
}

impl<'a, S: Stream> Client<'a, S> {
    /// A conversation over what `make` returns, which is established, and registered under the token it is given.
    pub fn start(config: &'a Config, interactive: bool, make: impl FnOnce(Token) -> io::Result<S>) -> io::Result<Self> {
        let control = Rc::new(Control::default());
        let mut reactor = Reactor::new(Reception::default(), Settings::default());
        let token = reactor.open(|token, _| Ok((Line::new(make(token)?, control.clone()), ())))?;
        let now = Instant::now();
        Ok(Client {
            config,
            reactor,
            token,
            control,
            interactive,
            prompted: false,
            phase: Phase::Talking,
            echoed: Echoed::new(),
            newline_owed: false,
            inside_line: false,
            input_failure: None,
            now,
            silent_since: now,
            gone_at: None,
        })
    }

    /// Runs until everything has been sent and has come back, or the connection is gone.
    ///
    /// # Errors
    ///
    /// If it is gone before everything has come back, a reply is late, or standard input or output fail.
    pub fn run(&mut self, console: &mut Console, mut input: Input) -> anyhow::Result<()> {
        loop {
            let sleep = self.sleep(&input, &console.screen);
            let now = console.wait(sleep)?;
            input.refill();
            self.turn(now, &console.ready, &mut input, &mut console.screen);
            if let Some(outcome) = self.outcome(&input, &console.screen) {
                self.farewell(&input, &mut console.screen);
                console.flush()?;
                return outcome;
            }
        }
    }

    /// Makes the steps that can be made.
    fn turn(&mut self, now: Instant, ready: &[Readiness], input: &mut Input, screen: &mut Screen) {
        self.now = now;
        if !self.is_reply_due(screen) || self.control.paused.get() {
            self.silent_since = now;
        }
        self.control.paused.set(screen.is_full());
        // What an event said before the pause was forgotten at our own WouldBlock, which the kernel never gave: the peer's
        // end may stand behind the bytes, and no edge will tell of it again. So a short read proves nothing now.
        let hint = (!screen.is_full() && self.control.unread.take()).then_some(Readiness {
            token: self.token,
            readable: true,
            writable: false,
            read_closed: true,
            urgent: false,
        });
        self.reactor.turn_with(now, ready.iter().copied().chain(hint));
        self.print(screen);
        self.after_echo(screen);
        self.take_input(input, screen);
        self.after_echo(screen);
        if self.reactor.is_empty() {
            self.gone_at.get_or_insert(now);
        }
    }

    /// How long nothing can be done unless something happens.
    fn sleep(&self, input: &Input, screen: &Screen) -> Option<Duration> {
        let reads = self.control.unread.get() && !screen.is_full() && !self.reactor.is_empty();
        if reads || self.may_take(input) || (self.is_echoed() && self.newline_owed) || self.is_prompt_due() {
            return Some(Duration::ZERO);
        }
        let due = |at: Instant| at.saturating_duration_since(self.now);
        let late = self.late_at(screen).map(due);
        let verdict = self.gone_at.map(|gone_at| due(gone_at + INPUT_TIMEOUT));
        [self.reactor.sleep(self.now), late, verdict].into_iter().flatten().min()
    }

    /// Whether all that was sent has come back.
    fn is_echoed(&self) -> bool {
        self.echoed.missing() == 0
    }

    /// Whether something is to come from the peer: an echo, the text that is waited for, or its end.
    fn is_reply_due(&self, screen: &Screen) -> bool {
        !self.is_echoed() || self.phase == Phase::Finishing || screen.expected() == Some(false)
    }

    /// When a reply that is due is late, if it may be.
    fn late_at(&self, screen: &Screen) -> Option<Instant> {
        let counts = self.is_reply_due(screen) && !self.control.paused.get() && !self.reactor.is_empty();
        self.config.reply_timeout().filter(|_| counts).map(|timeout| self.silent_since + timeout)
    }

    /// Prints what has come, and learns how the connection ended.
    fn print(&mut self, screen: &mut Screen) {
        let reception = self.reactor.protocol_mut();
        if reception.bytes.is_empty() {
            return;
        }
        screen.received(&reception.bytes);
        let missing = self.echoed.missing();
        self.echoed.received(&reception.bytes);
        // Who waits for a text is not served by others, of which there may be no end.
        if self.config.expect.is_none() || self.echoed.missing() < missing {
            self.silent_since = self.now;
        }
        reception.bytes.clear();
    }

    /// Whether it is time for the next piece of input, and there is one.
    fn may_take(&self, input: &Input) -> bool {
        let in_turn = !self.config.no_newline || self.inside_line || self.is_echoed();
        let open = self.phase == Phase::Talking && !self.reactor.is_empty() && self.control.broken.borrow().is_none();
        // Everything that waits is on this connection.
        open && in_turn && self.reactor.counters().waiting_bytes == 0 && input.peek().is_some()
    }

    /// Takes one piece of input, if it is time for it, and sends it.
    fn take_input(&mut self, input: &mut Input, screen: &mut Screen) {
        if !self.may_take(input) {
            return;
        }
        match input.take() {
            Some(Item::Piece { bytes, line_ends }) => self.send(&bytes, line_ends),
            Some(Item::Failed(error)) => {
                self.input_failure = Some(error);
                self.end_input(screen);
            }
            Some(Item::End) => self.end_input(screen),
            None => {}
        }
    }

    fn end_input(&mut self, screen: &mut Screen) {
        self.phase = Phase::Finishing;
        if std::mem::take(&mut self.prompted) {
            screen.say("\n"); // what comes next is the shell's prompt
        }
        self.reactor.with(self.token, |_, transport, ()| transport.shutdown_write());
    }

    fn send(&mut self, piece: &[u8], line_ends: bool) {
        let bare = without_newline(piece);
        let is_rest = std::mem::replace(&mut self.inside_line, !line_ends);
        if line_ends && !is_rest && self.config.is_terminator(bare) {
            self.phase = Phase::Leaving;
        }
        let bytes = if self.config.no_newline { bare } else { piece };
        self.newline_owed = self.config.no_newline && line_ends;
        self.prompted = false;
        self.silent_since = self.now;
        self.echoed.sent(bytes);
        self.reactor.with(self.token, |_, transport, ()| transport.write(bytes));
    }

    /// What is printed when everything that was sent has come back: the newline that was not sent, and the prompt.
    fn after_echo(&mut self, screen: &mut Screen) {
        if self.is_echoed() && std::mem::take(&mut self.newline_owed) {
            screen.newline();
        }
        if self.is_prompt_due() {
            self.prompted = true;
            screen.say(PROMPT);
        }
    }

    fn is_prompt_due(&self) -> bool {
        let listens = self.phase == Phase::Talking && !self.reactor.is_empty();
        self.interactive && self.is_echoed() && listens && !self.prompted
    }

    /// How it ended, once it has.
    fn outcome(&mut self, input: &Input, screen: &Screen) -> Option<anyhow::Result<()>> {
        if screen.expected() == Some(true) {
            return Some(Ok(()));
        }
        if self.reactor.is_empty() {
            return self.gone(input);
        }
        if self.phase == Phase::Leaving && self.is_echoed() && !self.newline_owed {
            return Some(unexpected(self.config));
        }
        let late = self.late_at(screen).is_some_and(|at| self.now >= at);
        late.then(|| {
            let timeout = self.config.reply_timeout().unwrap_or_default();
            let (address, timeout) = (&self.config.address, humantime::format_duration(timeout));
            if let Some(text) = &self.config.expect {
                return Err(anyhow!("{text:?} did not come back from {address} within {timeout}"));
            }
            Err(match self.missing(input) {
                0 => anyhow!("{address} did not close the connection within {timeout}"),
                missing => {
                    anyhow!("no reply from {address} within {timeout}: {} not echoed", counted(missing, "byte"))
                }
            })
        })
    }

    /// Bytes that were read from the input and did not come back, as far as it is known. What follows the terminator was
    /// never meant to be sent.
    fn missing(&self, input: &Input) -> u64 {
        let unsent = if self.phase == Phase::Leaving { 0 } else { input.waiting() };
        self.echoed.missing() + unsent
    }

    /// How it ended, with the connection gone. That is open as long as the input may yet say that there was more to send.
    fn gone(&mut self, input: &Input) -> Option<anyhow::Result<()>> {
        let address = &self.config.address;
        let broken = self.control.broken.borrow();
        let failure = self.reactor.protocol().failure.as_ref().or(broken.as_ref());
        let missing = self.missing(input);
        if missing > 0 && self.config.expect.is_none() {
            let cause = failure.map_or_else(|| format!("{address} closed it"), |error| format!("{address}: {error}"));
            let missing = counted(missing, "byte");
            return Some(Err(anyhow!("the connection ended with {missing} not echoed: {cause}")));
        }
        if let Some(error) = failure {
            let failed = format!("the connection to {address} failed: {error}");
            return Some(Err(self
                .config
                .expect
                .as_ref()
                .map_or_else(|| anyhow!("{failed}"), |text| anyhow!("{text:?} did not come back: {failed}"))));
        }
        match input.peek() {
            // Nothing more will come, whatever the input says.
            _ if self.phase != Phase::Talking || self.config.expect.is_some() => {}
            Some(Item::Failed(error)) => self.input_failure = Some(io::Error::new(error.kind(), error.to_string())),
            Some(Item::End) => {}
            None if input.terminal || self.gone_at.is_some_and(|at| self.now >= at + INPUT_TIMEOUT) => {}
            _ => return None,
        }
        if let Some(error) = self.input_failure.take() {
            return Some(Err(error).context("cannot read standard input"));
        }
        Some(unexpected(self.config))
    }

    /// Tells a user at a terminal that the other side has closed the connection.
    fn farewell(&self, input: &Input, screen: &mut Screen) {
        if self.interactive && self.phase == Phase::Talking && self.reactor.is_empty() && self.missing(input) == 0 {
            let address = self.config.address.to_string();
            screen.say(&format!("\n{} closed the connection\n", escape::text(&address)));
        }
    }
}

/// Keeps what is received until the turn is over.
#[derive(Default)]
struct Reception {
    bytes: Vec<u8>,
    failure: Option<io::Error>,
}

impl<S: Stream> Protocol<Line<S>> for Reception {
    type State = ();
    /// The server may refuse to read while it cannot send, so what it sends must be read in any case.
    const FULL_DUPLEX: bool = true;

    fn received(&mut self, _: &mut Transport<'_, Line<S>>, (): &mut (), bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Nothing more will come if nothing can be sent.
    fn read_drained(&mut self, transport: &mut Transport<'_, Line<S>>, (): &mut ()) {
        if transport.socket().is_broken() && !transport.socket().is_paused() {
            transport.abort();
        }
    }

    /// Nothing more will come back. What waits to be sent is not waited for: it would never be echoed.
    fn eof(&mut self, transport: &mut Transport<'_, Line<S>>, (): &mut ()) {
        if transport.waiting() > 0 { transport.abort() } else { transport.close() }
    }

    fn closed(&mut self, _: Token, (): (), reason: &CloseReason) {
        debug!("the connection is closed: {reason}");
        if let CloseReason::Failed(error) = reason {
            self.failure = Some(io::Error::new(error.kind(), error.to_string()));
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
