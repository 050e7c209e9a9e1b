//! RFC 863, discard: the smallest protocol there is. Teaches: a state, a callback, a listener, a loop.
//!
//! `cargo run --example discard -- 127.0.0.1:9009`, then `nc 127.0.0.1 9009`. What is sent to it is thrown away; peers
//! that half-close, reset or never close, and a shortage of descriptors, are the library's business.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use echoloop::reactor::socket::Origin;
use echoloop::reactor::{Listener, Poller, Protocol, Reactor, Refusal, Settings, SocketOptions, Stream, Transport};

struct Discard;

impl<S: Stream> Protocol<S> for Discard {
    type State = (); // nothing to remember about a connection

    fn accept(&mut self, _: Origin, _: Instant) -> Result<(), Refusal> {
        Ok(()) // no access control
    }

    fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), _: &[u8]) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:9009".to_owned()).parse()?;
    let mut poller = Poller::new(Duration::ZERO)?;
    let mut reactor = Reactor::new(Discard, Settings::default());
    reactor.listen(|token| {
        let listener = Listener::tcp(address, &SocketOptions::default(), poller.registry(), token)?;
        println!("listening on {}", listener.endpoint()?);
        Ok(listener)
    })?;
    Ok(reactor.run(&mut poller)?)
}
