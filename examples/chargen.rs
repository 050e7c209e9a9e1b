//! RFC 864, chargen: lines without end, as fast as the peer reads them. Teaches: backpressure from the sender's side.
//!
//! `cargo run --example chargen -- 127.0.0.1:9019`, then `nc 127.0.0.1 9019 | head`. It never has more than one piece
//! waiting for a connection: while something waits it writes nothing, and goes on when that was flushed. A peer that takes
//! everything at once gets its share of a turn, and then the others get theirs.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use echoloop::reactor::socket::Origin;
use echoloop::reactor::{Listener, Poller, Protocol, Reactor, Refusal, Settings, SocketOptions, Stream, Transport};

/// 95 lines of 72 characters: all that RFC 864 recommends, before it begins again.
const PERIOD: usize = 95 * 74;

/// Pieces written to one connection in a turn.
const SHARE: usize = 8;

struct Chargen {
    pattern: Vec<u8>,
}

impl Chargen {
    fn new() -> Self {
        let line = |first: u8| (0..72).map(move |at| b' ' + (first + at) % 95).chain(*b"\r\n");
        Chargen { pattern: (0..95).flat_map(line).collect() }
    }

    /// Writes until something waits, or the connection has had its share.
    fn fill<S: Stream>(&self, transport: &mut Transport<'_, S>) {
        for _ in 0..SHARE {
            transport.write(&self.pattern[..PERIOD]);
            if transport.waiting() > 0 {
                return; // `flushed` is called when it has left
            }
        }
        transport.call_again();
    }
}

impl<S: Stream> Protocol<S> for Chargen {
    type State = ();

    fn accept(&mut self, _: Origin, _: Instant) -> Result<(), Refusal> {
        Ok(())
    }

    fn opened(&mut self, transport: &mut Transport<'_, S>, _: &mut ()) {
        self.fill(transport);
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, _: &mut ()) {
        self.fill(transport);
    }

    fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), _: &[u8]) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:9019".to_owned()).parse()?;
    let mut poller = Poller::new(Duration::ZERO)?;
    let mut reactor = Reactor::new(Chargen::new(), Settings::default());
    reactor.listen(|token| {
        let listener = Listener::tcp(address, &SocketOptions::default(), poller.registry(), token)?;
        println!("listening on {}", listener.endpoint()?);
        Ok(listener)
    })?;
    Ok(reactor.run(&mut poller)?)
}
