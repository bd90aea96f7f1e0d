// A TLS client that sends numbered lines and a tail, says close_notify, and checks that all of it
// comes back.
//
//	client ADDRESS CA-FILE LINES
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strconv"
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	pem, err := os.ReadFile(os.Args[2])
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	lines, err := strconv.Atoi(os.Args[3])
	check(err)
	var text bytes.Buffer
	for number := 0; number < lines; number++ {
		fmt.Fprintf(&text, "%d\n", number)
	}
	text.WriteString("the tail")
	client, err := tls.Dial("tcp", os.Args[1], &tls.Config{RootCAs: roots, ServerName: "localhost"})
	check(err)
	failed := make(chan error, 1)
	go func() {
		for rest := text.Bytes(); len(rest) > 0; {
			size := 1000
			if size > len(rest) {
				size = len(rest)
			}
			if _, err := client.Write(rest[:size]); err != nil {
				failed <- err
				return
			}
			rest = rest[size:]
		}
		failed <- client.CloseWrite()
	}()
	came, err := io.ReadAll(client)
	check(err)
	check(<-failed)
	if !bytes.Equal(came, text.Bytes()) {
		fmt.Println(len(came), "bytes came back of", text.Len())
		os.Exit(1)
	}
	fmt.Println("all came back")
}
