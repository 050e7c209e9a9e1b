//! What echo means: what is received is sent back. And, only where it is asked for, what a message is.
//!
//! TCP has no messages. `--terminator`, `--message-limit` and `--print` need them, so for these a message ends at LF
//! or CRLF (which are not part of it), or where the socket has been drained with bytes pending, as when a client sends
//! a bare word and waits. One exception, so that a terminator split over two segments is still seen: then,
//! bytes that are a proper beginning of it, or it and a CR whose LF is still to come, stay pending.
//!
//! Without those options bytes are never looked at, and a connection has no state here beyond a null pointer.
//!
//! The `Gate` says which clients are echoed to. Usually it is asked before there is a connection; if a proxy tells the
//! client's address, it is asked when the header has come, and none of the header is echoed.

use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use log::{Level, debug, log_enabled};
use memchr::memchr;
use mio::Token;

use super::access::{AccessOptions, Gate, Refusal};
use super::logged::Logged;
use super::printer::Printer;
use super::proxy::{self, Header};
use crate::reactor::socket::Origin;
use crate::reactor::{self, CloseReason, Protocol, Stream, Transport};
use crate::{escape, hex};

/// How long a proxy may take to send its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The most of a message that is kept to be printed in one piece, in bytes.
const PRINT_PIECE: usize = 64 * 1024;

/// The printer of all connections' messages.
pub(super) type SharedPrinter = Rc<RefCell<Printer>>;

/// The echo protocol.
pub struct Echo {
    rules: Option<Rules>,
    pub(super) gate: Gate,
    /// Connections begin with a PROXY header.
    proxied: bool,
    /// Connections that were admitted so far, and those whose header is still awaited.
    admitted: u64,
    awaiting_header: u64,
}

/// What is done with messages.
struct Rules {
    /// The word that closes a connection, and a CR: the beginnings of a message that may still become the word are the
    /// beginnings of this.
    terminator: Option<Vec<u8>>,
    limit: Option<u64>,
    printer: Option<SharedPrinter>,
    /// What comes is printed as a hex dump, and not as messages.
    hex: bool,
    /// Messages, over all connections.
    count: u64,
}

impl Rules {
    /// The printer, if messages are printed.
    fn message_printer(&self) -> Option<&SharedPrinter> {
        self.printer.as_ref().filter(|_| !self.hex)
    }

    /// The printer, if a hex dump is printed.
    fn hex_printer(&self) -> Option<&SharedPrinter> {
        self.printer.as_ref().filter(|_| self.hex)
    }
}

impl Echo {
    /// An echo to everybody that closes a connection after a message equal to `terminator` or after `limit` messages.
    pub fn new(terminator: Option<&[u8]>, limit: Option<u64>) -> Self {
        Echo::with(terminator, limit, None, false, &AccessOptions::default())
    }

    /// The same to those that `access` admits; messages are printed with `printer`, or a hex dump of what comes.
    pub(super) fn with(
        terminator: Option<&[u8]>,
        limit: Option<u64>,
        printer: Option<SharedPrinter>,
        hex: bool,
        access: &AccessOptions,
    ) -> Self {
        let looks = terminator.is_some() || limit.is_some() || printer.is_some();
        let terminator = terminator.map(|word| [word, b"\r"].concat());
        Echo {
            rules: looks.then_some(Rules { terminator, limit, printer, hex, count: 0 }),
            gate: Gate::new(access),
            proxied: access.has_proxy(),
            admitted: 0,
            awaiting_header: 0,
        }
    }

    /// What is to be remembered about a new connection.
    fn session(&self, origin: Origin, now: Instant) -> Option<Box<Session>> {
        // A reader of the log wants to know, when a connection has ended, whose it was and what became of it.
        let logged = log_enabled!(Level::Debug);
        let needed = self.rules.is_some() || self.proxied || self.gate.counts() || logged;
        needed.then(|| {
            let header = self.proxied.then(|| Awaited { due: now + HEADER_TIMEOUT, bytes: Vec::new() });
            let logged = logged.then(|| Logged::new(origin, now));
            Box::new(Session { header, messages: Messages::new(origin), logged })
        })
    }

    /// Messages so far, if they are counted.
    pub(super) fn messages(&self) -> Option<u64> {
        self.rules.as_ref().map(|rules| rules.count)
    }

    /// Connections that were admitted so far.
    pub(super) fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Connections of which is not known yet whether they are let in.
    pub(super) fn undecided(&self) -> u64 {
        self.awaiting_header
    }

    /// Takes a connection's next bytes as far as they are its header, and returns the rest of them.
    fn take_header<'a>(&mut self, token: Token, session: &mut Session, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let Some(awaited) = &mut session.header else { return Ok(bytes) };
        let before = awaited.bytes.len();
        // Nearly always the header comes whole, and is looked at where it is.
        let header = if before == 0 {
            proxy::parse(bytes)
        } else {
            awaited.bytes.extend_from_slice(bytes);
            proxy::parse(&awaited.bytes)
        };
        match header {
            Header::Incomplete => {
                if before == 0 {
                    awaited.bytes.extend_from_slice(bytes);
                }
                Ok(&[])
            }
            Header::Complete { length, source } => {
                let origin = source.map_or(session.messages.peer, Origin::Ip);
                debug!("token {}: {} speaks for {origin}", token.0, session.messages.peer);
                if let Some(logged) = &mut session.logged {
                    logged.peer = origin;
                }
                self.gate
                    .admit(origin)
                    .inspect_err(|refusal| debug!("token {}: refused {origin}: {refusal}", token.0))?;
                session.messages.peer = origin;
                session.header = None;
                self.awaiting_header -= 1;
                self.admitted += 1;
                Ok(&bytes[length - before..])
            }
            Header::Malformed(cause) => {
                debug!("token {}: no PROXY header: {cause}", token.0);
                self.gate.refuse(Refusal::Header);
                Err(Refusal::Header)
            }
        }
    }
}

impl<S: Stream> Protocol<S> for Echo {
    type State = Option<Box<Session>>;

    fn accept(&mut self, origin: Origin, now: Instant) -> Result<Self::State, reactor::Refusal> {
        if self.proxied {
            self.gate.enter_proxy(origin, now)?;
            self.awaiting_header += 1;
        } else {
            self.gate.enter(origin, now)?;
            self.admitted += 1;
        }
        Ok(self.session(origin, now))
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, state: &mut Self::State, bytes: &[u8]) {
        let Some(session) = state else {
            transport.write(bytes);
            return;
        };
        if let Some(logged) = &mut session.logged {
            logged.received += bytes.len() as u64;
        }
        let Ok(bytes) = self.take_header(transport.token(), session, bytes) else {
            transport.abort();
            return;
        };
        let after = self.rules.as_mut().map_or(After::GoOn, |rules| session.messages.receive(rules, bytes));
        let echo = match after {
            After::GoOn => bytes.len(),
            After::Close { echo } => echo,
        };
        transport.write(&bytes[..echo]);
        if after != After::GoOn {
            transport.close();
        }
        if let Some(logged) = &mut session.logged {
            logged.sent += echo as u64;
        }
    }

    fn read_drained(&mut self, transport: &mut Transport<'_, S>, state: &mut Self::State) {
        if let (Some(rules), Some(session)) = (&mut self.rules, state)
            && session.messages.read_drained(rules)
        {
            transport.close();
        }
    }

    fn eof(&mut self, transport: &mut Transport<'_, S>, state: &mut Self::State) {
        if let Some(awaited) = state.as_ref().and_then(|session| session.header.as_ref()) {
            // Who says nothing at all asks whether somebody listens, as balancers do: that is no mistake.
            if !awaited.bytes.is_empty() {
                self.gate.refuse(Refusal::Header);
                transport.abort();
            }
        } else if let (Some(rules), Some(session)) = (&mut self.rules, state) {
            session.messages.end_of_stream(rules);
        }
        transport.close();
    }

    fn deadline(&self, state: &Self::State) -> Option<Instant> {
        state.as_ref()?.header.as_ref().map(|awaited| awaited.due)
    }

    fn expired(&mut self, transport: &mut Transport<'_, S>, _: &mut Self::State) {
        debug!("token {}: no PROXY header within {HEADER_TIMEOUT:?}", transport.token().0);
        self.gate.refuse(Refusal::Header);
        transport.abort();
    }

    fn unsent(&mut self, state: &mut Self::State, bytes: usize) {
        if let Some(logged) = state.as_mut().and_then(|session| session.logged.as_mut()) {
            logged.unsent = bytes as u64;
        }
    }

    fn closed(&mut self, token: Token, state: Self::State, reason: &CloseReason) {
        let Some(session) = state else { return };
        if let Some(logged) = &session.logged {
            debug!("token {}: {}", token.0, logged.farewell(reason));
        }
        if session.header.is_some() {
            self.awaiting_header -= 1;
        } else if self.gate.counts() {
            self.gate.leave(session.messages.peer);
        }
    }
}

/// What is served over streams: an echo, or something around one.
pub trait StreamService<S: Stream>: Protocol<S> {
    /// The echo that there is.
    fn echo(&self) -> &Echo;
}

impl<S: Stream> StreamService<S> for Echo {
    fn echo(&self) -> &Echo {
        self
    }
}

/// What is remembered about a connection, if anything is.
pub struct Session {
    /// The PROXY header that is to come. Until it has, the connection has not been let in.
    header: Option<Awaited>,
    messages: Messages,
    /// For the log, if it tells of connections.
    logged: Option<Logged>,
}

/// A header, as far as it has come.
struct Awaited {
    due: Instant,
    bytes: Vec<u8>,
}

/// What is to be done after a piece of the stream has been looked at.
#[derive(Debug, PartialEq, Eq)]
enum After {
    GoOn,
    /// Echo this many of the bytes, and close.
    Close {
        echo: usize,
    },
}

/// How far the message that is pending has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    /// Its length in bytes, which are the first of the terminator.
    Beginning(usize),
    /// It has bytes in it, and is not the terminator.
    Other,
}

const NOTHING: Pending = Pending::Beginning(0);

/// How a message came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Newline,
    Dry,
}

/// The messages of one connection: how many there have been, and what is known of the pending one. Only its length
/// and whether it can still be the terminator; a message of a gigabyte takes no more room than an empty one.
struct Messages {
    peer: Origin,
    count: u64,
    pending: Pending,
    /// The pending message's bytes, as far as they are still to be printed. Empty if nothing is printed.
    unprinted: Vec<u8>,
    /// Bytes that have come, where they are printed as a hex dump.
    position: u64,
}

impl Messages {
    fn new(peer: Origin) -> Self {
        Messages { peer, count: 0, pending: NOTHING, unprinted: Vec::new(), position: 0 }
    }

    fn receive(&mut self, rules: &mut Rules, bytes: &[u8]) -> After {
        if let Some(printer) = rules.hex_printer().filter(|_| !bytes.is_empty()) {
            print_hex(printer, self.peer, self.position, bytes);
            self.position += bytes.len() as u64;
        }
        let mut at = 0;
        while let Some(length) = memchr(b'\n', &bytes[at..]) {
            self.extend(rules, &bytes[at..at + length]);
            at += length + 1;
            if self.end(rules, End::Newline) {
                return After::Close { echo: at };
            }
        }
        self.extend(rules, &bytes[at..]);
        After::GoOn
    }

    /// Everything that had arrived has been received. Returns whether to close.
    fn read_drained(&mut self, rules: &mut Rules) -> bool {
        let terminator = rules.terminator.as_ref().map_or(0, |word_and_cr| word_and_cr.len() - 1);
        match self.pending {
            Pending::Beginning(length) if length != terminator || length == 0 => false,
            _ => self.end(rules, End::Dry),
        }
    }

    /// The peer will send no more, so what was held back is a message.
    fn end_of_stream(&mut self, rules: &mut Rules) {
        if self.pending != NOTHING {
            self.end(rules, End::Dry);
        }
    }

    fn extend(&mut self, rules: &mut Rules, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Pending::Beginning(length) = self.pending {
            let still_possible = rules.terminator.as_ref().is_some_and(|word| word[length..].starts_with(bytes));
            self.pending = if still_possible { Pending::Beginning(length + bytes.len()) } else { Pending::Other };
        }
        if let Some(printer) = rules.message_printer() {
            for piece in bytes.chunks(PRINT_PIECE) {
                if self.unprinted.len() + piece.len() > PRINT_PIECE {
                    print(printer, self.peer, &self.unprinted, More::Follows);
                    self.unprinted.clear();
                }
                if self.unprinted.try_reserve(piece.len()).is_ok() {
                    self.unprinted.extend_from_slice(piece);
                } else {
                    print(printer, self.peer, &std::mem::take(&mut self.unprinted), More::Follows);
                    print(printer, self.peer, piece, More::Follows);
                }
            }
        }
    }

    /// The pending message is complete. Returns whether to close.
    fn end(&mut self, rules: &mut Rules, end: End) -> bool {
        let is_terminator = rules.terminator.as_ref().is_some_and(|word_and_cr| match self.pending {
            Pending::Beginning(length) if end == End::Newline => length + 1 >= word_and_cr.len(),
            Pending::Beginning(length) => length + 1 == word_and_cr.len(),
            Pending::Other => false,
        });
        self.pending = NOTHING;
        self.count += 1;
        rules.count += 1;
        if let Some(printer) = rules.message_printer() {
            let message = std::mem::take(&mut self.unprinted);
            let message = match message.strip_suffix(b"\r") {
                Some(without) if end == End::Newline => without,
                _ => &message,
            };
            print(printer, self.peer, message, More::None);
        }
        is_terminator || rules.limit.is_some_and(|limit| self.count >= limit)
    }
}

/// Prints a datagram as the message it is.
pub(super) fn print_datagram(printer: &SharedPrinter, hex: bool, from: Origin, bytes: &[u8]) {
    match hex {
        true => print_hex(printer, from, 0, bytes),
        false => print(printer, from, bytes, More::None),
    }
}

/// Prints what has come from a peer as a hex dump, of which each line says whose it is: lines of several peers alternate.
fn print_hex(printer: &SharedPrinter, peer: Origin, position: u64, bytes: &[u8]) {
    let mut printer = printer.borrow_mut();
    hex::lines(position, bytes).for_each(|line| printer.print(|out| writeln!(out, "{peer} < {line}")));
}

/// Whether a printed piece is the last of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    None,
    Follows,
}

/// Prints a message, or a piece of one, on a line.
fn print(printer: &SharedPrinter, peer: Origin, message: &[u8], more: More) {
    printer.borrow_mut().print(|out| {
        write!(out, "{peer} {}", escape::bytes(message))?;
        // A backslash in the message is printed as two; so one alone at the end can only mean: more follows.
        out.write_all(if more == More::Follows { b"\\\n" } else { b"\n" })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// Something that can be written to and looked into.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A connection's messages: what is received, and where the socket is drained.
    struct Session {
        rules: Rules,
        messages: Messages,
        printed: Shared,
    }

    impl Session {
        fn new(terminator: Option<&str>, limit: Option<u64>) -> Self {
            let printed = Shared::default();
            let printer = Rc::new(RefCell::new(Printer::new(printed.clone()).unwrap()));
            let access = AccessOptions::default();
            let echo = Echo::with(terminator.map(str::as_bytes), limit, Some(printer), false, &access);
            let messages = Messages::new(Origin::Ip("127.0.0.1:1".parse().unwrap()));
            Session { rules: echo.rules.unwrap(), messages, printed }
        }

        /// Receives a segment after which the socket is drained. Returns how many bytes are echoed, and whether the
        /// connection is closed.
        fn segment(&mut self, bytes: &str) -> (usize, bool) {
            match self.messages.receive(&mut self.rules, bytes.as_bytes()) {
                After::Close { echo } => (echo, true),
                After::GoOn => (bytes.len(), self.messages.read_drained(&mut self.rules)),
            }
        }

        /// What was printed. Nothing is printed after it.
        fn printed(&mut self) -> String {
            self.rules.printer.as_ref().unwrap().borrow_mut().finish(Instant::now() + Duration::from_secs(30));
            let text = String::from_utf8(self.printed.0.lock().unwrap().clone()).unwrap();
            text.replace("127.0.0.1:1 ", "")
        }
    }

    #[test]
    fn connection_without_options_has_no_state() {
        let session = |echo: Echo| echo.session(Origin::Unix, Instant::now());
        let counts = AccessOptions { max_per_source: Some(1), ..AccessOptions::default() };
        assert!(session(Echo::new(None, None)).is_none());
        assert!(session(Echo::new(None, Some(1))).is_some());
        assert!(session(Echo::with(None, None, None, false, &counts)).is_some());
    }

    #[test]
    fn the_terminator_closes_however_it_is_ended() {
        for last in ["bye", "bye\n", "bye\r\n", "hello\nbye\n", "hello\r\nbye"] {
            assert_eq!(Session::new(Some("bye"), None).segment(last), (last.len(), true), "{last:?}");
        }
        for other in ["by", "byes", "bye bye", "goodbye", "bye\rx\n", "Bye", "xbye\n", "\n", "bye\r", " bye"] {
            assert_eq!(Session::new(Some("bye"), None).segment(other), (other.len(), false), "{other:?}");
        }
    }

    #[test]
    fn a_terminator_split_over_segments_closes() {
        for parts in [&["b", "ye"][..], &["b", "y", "e"], &["by", "e\r\n"], &["hi\nb", "ye\n"]] {
            let mut session = Session::new(Some("bye"), None);
            let (last, first) = parts.split_last().unwrap();
            for part in first {
                assert_eq!(session.segment(part), (part.len(), false), "{parts:?}");
            }
            assert_eq!(session.segment(last), (last.len(), true), "{parts:?}");
        }
        let mut session = Session::new(Some("bye"), None);
        assert_eq!(session.segment("hello bye\r"), (10, false));
        assert_eq!(session.segment("bye\r"), (4, false), "the LF is still to come");
        assert_eq!(session.segment("\n"), (1, true));
    }

    #[test]
    fn false_start_of_a_terminator_is_one_message() {
        let mut session = Session::new(Some("bye"), None);
        session.segment("by");
        assert_eq!(session.messages.count, 0, "held back");
        assert_eq!(session.segment("x"), (1, false));
        assert_eq!(session.messages.count, 1);
        assert_eq!(session.printed(), "byx\n");
    }

    #[test]
    fn held_back_bytes_are_a_message_at_end() {
        let mut session = Session::new(Some("bye"), None);
        session.segment("by");
        session.messages.end_of_stream(&mut session.rules);
        assert_eq!((session.messages.count, session.printed().as_str()), (1, "by\n"));
        session.messages.end_of_stream(&mut session.rules);
        assert_eq!(session.messages.count, 1);
    }

    #[test]
    fn rest_of_read_after_last_message_stays_unechoed() {
        assert_eq!(Session::new(Some("bye"), None).segment("hi\nbye\nmore"), (7, true));
        assert_eq!(Session::new(None, Some(2)).segment("a\r\nb\r\nc\r\n"), (6, true));
        assert_eq!(Session::new(None, Some(1)).segment("word"), (4, true));
        assert_eq!(Session::new(None, Some(1)).segment("\n\n"), (1, true));
        assert_eq!(Session::new(None, Some(2)).segment("word"), (4, false));
    }

    #[test]
    fn message_longer_than_a_read_takes_no_room() {
        let mut session = Session::new(Some("bye"), Some(2));
        session.rules.printer = None;
        for _ in 0..1000 {
            assert_eq!(session.messages.receive(&mut session.rules, &[b'x'; 65536]), After::GoOn);
        }
        assert_eq!((session.messages.count, session.messages.unprinted.capacity()), (0, 0));
        assert_eq!(session.segment("bye"), (3, false), "the end of a long message is not the word");
        assert_eq!(session.segment("bye"), (3, true));
    }

    #[test]
    fn every_split_echoes_and_closes_at_same_byte() {
        // Reads that are cut anywhere, with the socket drained only at the end, are one stream.
        let stream = b"one\r\nby\nbyebye\n\nbye\r\nafter";
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut session = Session::new(Some("bye"), None);
                let mut echoed = 0;
                for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                    match session.messages.receive(&mut session.rules, part) {
                        After::GoOn => echoed += part.len(),
                        After::Close { echo } => {
                            echoed += echo;
                            break;
                        }
                    }
                }
                assert_eq!(&stream[..echoed], b"one\r\nby\nbyebye\n\nbye\r\n", "cut at {first} and {second}");
                assert_eq!(session.printed(), "one\nby\nbyebye\n\nbye\n");
            }
        }
    }

    #[test]
    fn a_hex_dump_counts_the_bytes_of_its_connection() {
        let mut session = Session::new(None, None);
        session.rules.hex = true;
        session.segment("one\ntwo");
        session.segment("\u{202e}0123456789abcdef");
        assert_eq!(session.messages.unprinted.capacity(), 0, "nothing is gathered");
        let expected = "\
< 00000000  6f 6e 65 0a 74 77 6f                              |one.two|
< 00000007  e2 80 ae 30 31 32 33 34  35 36 37 38 39 61 62 63  |...0123456789abc|
< 00000017  64 65 66                                          |def|
";
        assert_eq!(session.printed(), expected);
    }

    #[test]
    fn a_long_message_is_printed_in_pieces() {
        let mut session = Session::new(None, None);
        let long = "x".repeat(PRINT_PIECE + 10);
        session.segment(&long);
        assert_eq!(session.printed(), format!("{}\\\n{}\n", &long[..PRINT_PIECE], &long[PRINT_PIECE..]));
    }
}
