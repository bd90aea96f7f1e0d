// An echo in Go, line by line, a goroutine for each connection.
//
//	PORT=4040 [TLS_CERTIFICATE=FILE TLS_PRIVATE_KEY=FILE] echo
package main

import (
	"bufio"
	"crypto/tls"
	"net"
	"os"
)

func serve(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 1<<16)
	for {
		line, err := reader.ReadBytes('\n')
		if len(line) > 0 {
			if _, err := connection.Write(line); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	if file := os.Getenv("TLS_CERTIFICATE"); file != "" {
		pair, err := tls.LoadX509KeyPair(file, os.Getenv("TLS_PRIVATE_KEY"))
		if err != nil {
			panic(err)
		}
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}})
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go serve(connection)
	}
}
