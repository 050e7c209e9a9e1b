//! Tokio, as its users write it: a task with a buffer of its own for each connection.

use std::convert::Infallible;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Builder;

use crate::listening::Listening;

/// A runtime in this thread, and nothing else.
pub fn serve(listening: Listening, buffer: usize) -> io::Result<Infallible> {
    Builder::new_current_thread().enable_io().build()?.block_on(run(listening, buffer))
}

/// What `#[tokio::main]` makes: as many threads as there are cores that it may use.
pub fn serve_threads(listening: Listening, buffer: usize) -> io::Result<Infallible> {
    let runtime = Builder::new_multi_thread().enable_io().build()?;
    // What is not spawned runs in the thread that waits for it, and not in those of the runtime.
    runtime.block_on(async { tokio::spawn(run(listening, buffer)).await? })
}

async fn run(listening: Listening, buffer: usize) -> io::Result<Infallible> {
    match listening.nonblocking()? {
        Listening::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                tokio::spawn(echo(listener.accept().await?.0, buffer));
            }
        }
        Listening::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            loop {
                tokio::spawn(echo(listener.accept().await?.0, buffer));
            }
        }
        Listening::Udp(socket) => {
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let (count, from) = socket.recv_from(&mut buffer).await?;
                let _ = socket.send_to(&buffer[..count], from).await;
            }
        }
    }
}

async fn echo(mut socket: impl AsyncRead + AsyncWrite + Unpin, buffer: usize) {
    let mut buffer = vec![0; buffer];
    while let Ok(count @ 1..) = socket.read(&mut buffer).await {
        if socket.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
