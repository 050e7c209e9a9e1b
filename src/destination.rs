//! The address that a client is given: of one service. Each refusal shows one that works.

use crate::reactor::address::{Address, AddressError, DEFAULT, is_group};
use crate::values::with_example;

/// The address of one service, of which the port may be left to be chosen: 0.
pub(crate) fn service(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error| match error {
        AddressError::NoHost(port, kind) => with_example("it names no host", &format!("{kind}127.0.0.1:{port}")),
        AddressError::List(all) => with_example("these are several addresses, and it takes one", &all[0]),
        error => error.to_string(),
    })
}

/// An address to connect to: of one machine, at one port.
pub(crate) fn destination(text: &str) -> Result<Address, String> {
    let address = service(text)?;
    match &address {
        Address::Tcp(host) | Address::Udp(host) if host.port() == 0 => {
            Err(with_example("nobody can be reached at port 0", DEFAULT))
        }
        Address::Tcp(host) | Address::Udp(host) if host.name().parse().is_ok_and(is_group) => {
            Err(with_example("nobody answers from a broadcast or multicast address", DEFAULT))
        }
        _ => Ok(address),
    }
}
