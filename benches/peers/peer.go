// Go's net package, as its users write it: a goroutine with a buffer of its own for each connection.
//
// The loop is written out: io.Copy between two sockets would go through a pipe (splice(2)), which costs small messages more.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"strings"
)

func echo(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 8*1024)
	for {
		count, err := conn.Read(buffer)
		if count > 0 {
			// It writes all of them, or says why not.
			if _, err := conn.Write(buffer[:count]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func datagrams(address string) {
	local, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", local)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on udp:%s\n", conn.LocalAddr())
	buffer := make([]byte, 64*1024)
	for {
		count, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			continue
		}
		conn.WriteToUDPAddrPort(buffer[:count], from)
	}
}

func cut(text, prefix string) (string, bool) {
	return strings.TrimPrefix(text, prefix), strings.HasPrefix(text, prefix)
}

func main() {
	network, address, prefix := "tcp", os.Args[1], ""
	if rest, found := cut(address, "udp:"); found {
		datagrams(rest)
	}
	if rest, found := cut(address, "unix:"); found {
		network, address, prefix = "unix", rest, "unix:"
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s%s\n", prefix, listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			continue
		}
		go echo(conn)
	}
}
