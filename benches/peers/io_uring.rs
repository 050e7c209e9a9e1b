//! io_uring through monoio: a task with a buffer of its own for each connection, which the kernel fills.

use std::convert::Infallible;
use std::io;

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::udp::UdpSocket;
use monoio::net::{TcpListener, UnixListener};

use crate::listening::Listening;

pub fn serve(listening: Listening) -> io::Result<Infallible> {
    let listening = listening.nonblocking()?;
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().with_entries(4096).build()?;
    runtime.block_on(async {
        match listening {
            Listening::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    monoio::spawn(echo(listener.accept().await?.0));
                }
            }
            Listening::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    monoio::spawn(echo(listener.accept().await?.0));
                }
            }
            Listening::Udp(socket) => {
                let socket = UdpSocket::from_std(socket)?;
                let mut buffer = Vec::with_capacity(64 * 1024);
                loop {
                    let (received, filled) = socket.recv_from(buffer).await;
                    let (_, taken) = socket.send_to(filled, received?.1).await;
                    buffer = taken;
                    buffer.clear();
                }
            }
        }
    })
}

async fn echo(mut socket: impl AsyncReadRent + AsyncWriteRent) {
    let mut buffer = Vec::with_capacity(8 * 1024);
    loop {
        let (received, filled) = socket.read(buffer).await;
        if !matches!(received, Ok(1..)) {
            break;
        }
        let (sent, taken) = socket.write_all(filled).await;
        if sent.is_err() {
            break;
        }
        buffer = taken;
        buffer.clear();
    }
}
