//! RFC 867, daytime: each connection gets the time and is closed. Teaches: `opened`, `close`, and a limit on connections.
//!
//! `cargo run --example daytime -- 127.0.0.1:9013`, then `nc 127.0.0.1 9013`. `close` sends what was written first, waits
//! for the peer's end so that nothing is lost to a reset, and is bounded in time whatever the peer does.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant, SystemTime};

use echoloop::reactor::socket::Origin;
use echoloop::reactor::{Listener, Poller, Protocol, Reactor, Refusal, Settings, SocketOptions, Stream, Transport};

struct Daytime;

impl<S: Stream> Protocol<S> for Daytime {
    type State = ();

    fn accept(&mut self, _: Origin, _: Instant) -> Result<(), Refusal> {
        Ok(())
    }

    fn opened(&mut self, transport: &mut Transport<'_, S>, _: &mut ()) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        transport.write(format!("{} seconds since 1970-01-01\r\n", since.as_secs()).as_bytes());
        transport.close();
    }

    // What a client sends is discarded once its connection is closed, so this is never called.
    fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), _: &[u8]) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:9013".to_owned()).parse()?;
    let mut poller = Poller::new(Duration::ZERO)?;
    // A hundred at once; further ones wait in the backlog.
    let mut reactor = Reactor::new(Daytime, Settings { max_connections: 100, ..Settings::default() });
    reactor.listen(|token| {
        let listener = Listener::tcp(address, &SocketOptions::default(), poller.registry(), token)?;
        println!("listening on {}", listener.endpoint()?);
        Ok(listener)
    })?;
    Ok(reactor.run(&mut poller)?)
}
