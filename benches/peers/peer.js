// Node's net module, as its users write it: a socket is piped into itself, which brings backpressure and half-close.
'use strict';

const dgram = require('dgram');
const net = require('net');

const where = process.argv[2];
const say = (address) => console.log(`listening on ${address}`);

if (where.startsWith('udp:')) {
  const [host, port] = where.slice(4).split(':');
  const socket = dgram.createSocket('udp4');
  socket.on('message', (bytes, from) => socket.send(bytes, from.port, from.address));
  socket.on('error', () => {});
  socket.bind(Number(port), host, () => say(`udp:${socket.address().address}:${socket.address().port}`));
} else {
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  if (where.startsWith('unix:')) {
    server.listen({ path: where.slice(5), backlog: 4096 }, () => say(where));
  } else {
    const [host, port] = where.split(':');
    server.listen({ host, port: Number(port), backlog: 4096 }, () =>
      say(`${server.address().address}:${server.address().port}`));
  }
}
