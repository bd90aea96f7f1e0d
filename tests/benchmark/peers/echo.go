// An echo in Go, line by line, a goroutine for each connection.
//
//	PORT=4040 echo
package main

import (
	"bufio"
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
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go serve(connection)
	}
}
