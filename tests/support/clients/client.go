// An application in Go: see tests/e2e/test_languages.py.

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"
)

func main() {
	scheme := map[string]string{"http": "http", "socks": "socks5"}[os.Args[1]]
	proxy, base := scheme+"://127.0.0.1:"+os.Args[2], os.Args[3]
	address, err := url.Parse(proxy)
	check(err)
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(address)}}
	if os.Args[4] == "give-up" {
		client.Timeout = 200 * time.Millisecond
		if _, err := client.Get(base + "/"); err != nil && os.IsTimeout(err) {
			fmt.Println("gave up")
			io.ReadAll(os.Stdin)
		}
		return
	}
	print(client.Get(base + "/hello"))
	// A body of unknown length goes in chunks.
	print(client.Post(base+"/upload", "text/plain", io.MultiReader(bytes.NewReader(make([]byte, 300_000)))))
}

func print(answer *http.Response, err error) {
	check(err)
	body, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Print(string(body))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
