//! A chat: each line goes to everybody else. Teaches: acting on other connections, and what to do with a slow consumer.
//!
//! `cargo run --example chat -- 127.0.0.1:9020`, then several `nc 127.0.0.1 9020`. A protocol sees one connection at a
//! time; so lines are collected during the turn, and its owner hands them to the others after it. Nobody's memory grows
//! with somebody else's slowness: who leaves more than [`MAX_WAITING`] unread is dropped, and told so by a reset.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use echoloop::reactor::socket::Origin;
use echoloop::reactor::{
    Listener, Poller, Protocol, Reactor, Refusal, Settings, SocketOptions, Source, Stream, Token, Transport,
};

/// Bytes that may wait for one who reads slowly.
const MAX_WAITING: usize = 256 * 1024;

/// The longest line; more without a newline is passed on in pieces.
const MAX_LINE: usize = 8 * 1024;

#[derive(Default)]
struct Chat {
    /// Lines of this turn, and who said them.
    said: Vec<(Token, Vec<u8>)>,
}

impl<S: Stream> Protocol<S> for Chat {
    /// The line that is being received.
    type State = Vec<u8>;

    fn accept(&mut self, _: Origin, _: Instant) -> Result<Vec<u8>, Refusal> {
        Ok(Vec::new())
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, line: &mut Vec<u8>, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") || line.len() >= MAX_LINE {
                self.said.push((transport.token(), std::mem::take(line)));
            }
        }
    }
}

/// Hands what was said to everybody else.
fn deliver<S: Stream>(reactor: &mut Reactor<S, Chat>) {
    let said = std::mem::take(&mut reactor.protocol_mut().said);
    let tokens: Vec<Token> = if said.is_empty() { Vec::new() } else { reactor.tokens().collect() };
    for (from, line) in &said {
        for &token in tokens.iter().filter(|token| *token != from) {
            reactor.with(token, |_, transport, _| {
                if transport.waiting() + line.len() > MAX_WAITING {
                    transport.abort();
                } else {
                    transport.write(line);
                }
            });
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:9020".to_owned()).parse()?;
    let mut poller = Poller::new(Duration::ZERO)?;
    let mut reactor = Reactor::new(Chat::default(), Settings::default());
    reactor.listen(|token| {
        let listener = Listener::tcp(address, &SocketOptions::default(), poller.registry(), token)?;
        println!("listening on {}", listener.endpoint()?);
        Ok(listener)
    })?;
    loop {
        let (now, events) = poller.wait(reactor.sleep(Instant::now()))?;
        reactor.turn_with(now, events);
        deliver(&mut reactor);
    }
}
